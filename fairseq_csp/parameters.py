"""Parameters of every architecture: ``python -m fairseq_csp.parameters`` prints the table."""

import sys

import torch
from fairseq.data import Dictionary

import fairseq_csp.plugin  # noqa: F401 (registers the architectures)
from fairseq_csp.models.config import architecture_config
from fairseq_csp.models.family import FAMILY_REGISTRY
from fairseq_csp.models.lra import LRAModel

TASKS = ("listop", "imdb", "aan", "cifar10", "pf32", "pf128")
# of the prepared data, special symbols and <CLS> included
SYMBOLS = {"listop": 25, "imdb": 169, "aan": 105}


def count_parameters(family: str, task: str, attention: str | None = None) -> int:
    """Return the number of trained parameters of an architecture on its task's data.

    Args:
        family: name of a family.
        task: one of ``TASKS``.
        attention: name of an attention function; the architecture's own when None.

    Raises:
        UserError: the family does not take that attention.
    """
    arch = f"{family}_lra_{task}"
    # the numbers themselves are never made, so that they cannot be drawn anew either
    cfg = architecture_config(arch, attention=attention, apply_bert_init=False)
    with torch.device("meta"):
        model = LRAModel(cfg, _dictionary(task), documents=2 if task == "aan" else 1)
    return sum(parameter.numel() for parameter in model.parameters())


def table() -> str:
    """Return the parameters of every cell as a Markdown table."""
    lines = [
        f"| architecture | attention | {' | '.join(TASKS)} |",
        f"|---|---|{'---:|' * len(TASKS)}",
    ]
    for family in FAMILY_REGISTRY:
        takes_attention = bool(FAMILY_REGISTRY[family].encoder.takes)
        for attention in (None, "csp") if takes_attention else (None,):
            counts = [f"{count_parameters(family, task, attention):,}" for task in TASKS]
            kind = attention or ("own" if takes_attention else "none")
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
