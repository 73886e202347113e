"""All sequence mixers in one table: ``python -m fairseq_csp.mixers`` prints it as Markdown."""

import dataclasses
import sys
from inspect import cleandoc

import torch

import fairseq_csp.models.families  # noqa: F401 (registers them)
from fairseq_csp.models.family import FAMILY_REGISTRY, can_take
from fairseq_csp.modules.attention import ATTENTION_REGISTRY, AttentionFunction, flag_of
from fairseq_csp.modules.standalone import build_attention
from fairseq_csp.published import BENCHMARK, PUBLISHED, of_attention
from fairseq_csp.report.tables import markdown

# of the layer that parameters are counted for
SIZES = {"value_dim": 128, "heads": 4, "max_positions": 1024}
GRID = (32, 32)
COLUMNS = ["mixer", "what it is", "used in", "parameters", "options"]


def description(cls: type[AttentionFunction]) -> str:
    """Return what a mixer is, the first line of its file."""
    return cleandoc(sys.modules[cls.__module__].__doc__ or "").splitlines()[0].rstrip(".")


def count_parameters(name: str) -> int:
    """Return the trained numbers that a mixer itself has in a layer of ``SIZES``.

    Linear maps around it are not counted, but those of a function that brings its own are.
    """
    with torch.device("meta"):
        grid = GRID if ATTENTION_REGISTRY[name].images_only else None
        mixer = build_attention(name, grid=grid, **SIZES)
    return sum(parameter.numel() for parameter in mixer.parameters())


def table() -> str:
    """Return all mixers as a Markdown table."""
    rows = []
    for name, cls in sorted(ATTENTION_REGISTRY.items()):
        used = [member.name for member in FAMILY_REGISTRY.values() if can_take(member, cls)]
        most = [member.name for member in FAMILY_REGISTRY.values() if member.encoder.takes]
        options = [
            f"`{flag_of(name, item.name)}` {_shown(item.default)}"
            for item in dataclasses.fields(cls.options_type)
        ]
        rows.append(
            [
                f"`{name}`",
                description(cls),
                ("all" if used == most else ", ".join(used))
                + (", images only" if cls.images_only else ""),
                f"{count_parameters(name):,}",
                ", ".join(options),
            ]
        )
    return markdown(COLUMNS, rows)


def _shown(default: object) -> str:
    if default is None:
        return "by the sizes"
    return {True: "on", False: "off"}[default] if isinstance(default, bool) else str(default)


def published_table() -> str:
    """Return what was published of these mixers on the Long Range Arena as a Markdown table."""
    rows = []
    for name in sorted(ATTENTION_REGISTRY):
        for model in of_attention(name):
            found = PUBLISHED[model]
            accuracies = [found.accuracy.get(dataset, "") for dataset in BENCHMARK]
            rows.append([f"`{name}`", model, *accuracies, found.source])
    return markdown(["mixer", "published as", *BENCHMARK, "source"], rows)


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n{published_table()}")
