"""Parameters of every architecture: ``python -m fairseq_csp.parameters`` prints the table."""

import sys
from argparse import Namespace

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY

import fairseq_csp.plugin  # noqa: F401 (registers the architectures)
from fairseq_csp.models.config import LRAConfig
from fairseq_csp.models.lra import LRAModel

FAMILIES = ("mega", "transformer", "flash", "lstm")
TASKS = ("listop", "imdb", "aan", "cifar10", "pf32", "pf128")
# of the prepared data, special symbols and <CLS> included
SYMBOLS = {"listop": 25, "imdb": 169, "aan": 105}


def count_parameters(family: str, task: str, attention: str | None = None) -> int:
    """Return the number of trained parameters of an architecture on its task's data.

    Args:
        family: one of ``FAMILIES``.
        task: one of ``TASKS``.
        attention: name of an attention function; the architecture's own when None.

    Raises:
        UserError: the family does not take that attention.
    """
    arch = f"{family}_lra_{task}"
    args = Namespace(arch=arch, attention=attention)
    ARCH_CONFIG_REGISTRY[arch](args)
    # the numbers themselves are never made, so that they cannot be drawn anew either
    args.apply_bert_init = False
    with torch.device("meta"):
        model = LRAModel(
            LRAConfig.from_namespace(args), _dictionary(task), documents=2 if task == "aan" else 1
        )
    return sum(parameter.numel() for parameter in model.parameters())


def table() -> str:
    """Return the parameters of every cell as a Markdown table."""
    lines = [
        f"| architecture | attention | {' | '.join(TASKS)} |",
        f"|---|---|{'---:|' * len(TASKS)}",
    ]
    for family in FAMILIES:
        for attention in (None,) if family == "lstm" else (None, "csp"):
            counts = [f"{count_parameters(family, task, attention):,}" for task in TASKS]
            kind = attention or ("none" if family == "lstm" else "own")
            lines.append(f"| {family} | {kind} | {' | '.join(counts)} |")
    return "\n".join(lines) + "\n"


def _dictionary(task: str) -> Dictionary | None:
    if task not in SYMBOLS:
        return None
    dictionary = Dictionary()
    for number in range(SYMBOLS[task] - len(dictionary)):
        dictionary.add_symbol(f"symbol{number}")
    return dictionary


if __name__ == "__main__":
    sys.stdout.write(table())
