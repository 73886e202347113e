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
COLUMNS = ["mixer", "what it is", "time", "used in", "parameters", "options"]
# time of a row of n positions, beside the channels; letters are those of the options
COSTS = {
    "agent": "n tokens",
    "biformer": "n top n/regions",
    "bigbird": "n (window + global + random window)",
    "cga": "n^2",
    "channel": "n",
    "combiner": "n (segment + n/segment)",
    "cosformer": "n",
    "csp": "n log(group size)",
    "dgqa": "n^2",
    "fnet": "n log n",
    "gau_mixed": "n chunk",
    "gmlp": "n^2",
    "gqa": "n^2",
    "hilo": "n (window^2 + n/window^2)",
    "hyena": "n log n",
    "kdgqa": "n^2",
    "kernel_rpe": "n log n features",
    "laplace": "n^2",
    "linear": "n",
    "linformer": "n size",
    "local": "n window",
    "longformer": "n (window + global)",
    "luna": "n size",
    "moh": "n^2",
    "nystrom": "n landmarks + landmarks^3",
    "performer": "n features",
    "relu2": "n^2",
    "s4d": "n (state + log n)",
    "sigmoid": "n^2",
    "sinkformer": "n^2 iterations",
    "sliceformer": "n log n",
    "softmax": "n^2",
    "spectral": "n log n",
    "sqa": "n^2 queries/heads",
    "synthesizer": "n^2",
    "urpe": "n^2",
}


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
            f"`{flag_of(name, item.name)}` {_shown(item)}"
            for item in dataclasses.fields(cls.options_type)
        ]
        rows.append(
            [
                f"`{name}`",
                description(cls),
                COSTS.get(name, ""),
                ("all" if used == most else ", ".join(used))
                + (", images only" if cls.images_only else ""),
                f"{count_parameters(name):,}",
                ", ".join(options),
            ]
        )
    return markdown(COLUMNS, rows)


def _shown(item: dataclasses.Field) -> str:
    default = item.default
    if default is None:
        # said in the help
        return item.metadata["help"].partition("default: ")[2].removesuffix(")")
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
