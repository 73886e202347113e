"""Published test accuracies on the Long Range Arena, in percent, each with its source.

``python -m fairseq_csp.published`` prints them as a Markdown table.

Compare within one source only: on Retrieval the Transformer of the benchmark's authors and that of
MEGA's authors differ by 22 points. For CSP itself no published number is at hand.
"""

import re
import sys
from dataclasses import dataclass

from fairseq_csp import published_images
from fairseq_csp.datasets import DATASETS

FAILS = "fails"
# the data sets of the benchmark by this project's names, in the benchmark's order
BENCHMARK = ("listops", "imdb-4000", "aan", "cifar10", "pathfinder", "path-x")
# by source: model, the data sets in the order of BENCHMARK, and the average over those that have a
# number, as printed there (-: not published)
_SOURCES = {
    "LRA's repository (README)": """
        Transformer           36.37 64.27 57.46 42.44 71.40 fails 54.39
        Local attention       15.82 52.98 53.39 41.46 66.63 fails 46.06
        Linear Transformer    16.13 65.90 53.09 42.34 75.30 fails 50.55
        Reformer              37.27 56.10 53.40 38.07 68.50 fails 50.67
        Sparse Transformer    17.07 63.58 59.59 44.24 71.71 fails 51.24
        Sinkhorn Transformer  33.67 61.20 53.83 41.23 67.45 fails 51.29
        Linformer             35.70 53.94 52.27 38.56 76.34 fails 51.36
        Performer             18.01 65.40 53.82 42.77 77.05 fails 51.41
        Synthesizer           36.99 61.68 54.67 41.61 69.45 fails 52.88
        Longformer            35.63 62.85 56.89 42.22 69.71 fails 53.46
        BigBird               36.05 64.02 59.29 40.83 74.87 fails 55.01
    """,
    "arXiv 2102.03902, table 3": """
        Transformer, Nyströmformer's run   37.10 65.02 79.35 38.20 74.16 - 58.77
        Nyströmformer                      37.15 65.52 79.56 41.58 70.94 - 58.95
    """,
    "arXiv 2209.10655": """
        Transformer, MEGA's run   37.11 65.21 79.14 42.94 71.83 fails 59.24
        Luna-256                  37.98 65.78 79.56 47.86 78.55 fails 61.95
        S4-v2                     59.60 86.82 90.90 88.65 94.20 96.35 86.09
        MEGA                      63.14 90.43 91.25 90.44 96.01 97.98 88.21
        MEGA-chunk                58.76 90.19 90.97 85.80 94.41 93.81 85.66
    """,
    "S4's repository, approximate": """
        S4  59.5 86.5 91.0 88.5 94.0 96.0 85.9
    """,
    "arXiv 2208.04933": """
        S5  62.15 89.31 91.40 88.00 95.33 98.58 87.46
    """,
    "arXiv 2404.08801": """
        Megalodon  63.79 90.48 91.76 89.42 98.13 98.17 88.63
    """,
    "arXiv 2310.17683, the authors' sheet": """
        Sliceformer  37.65 64.60 62.23 48.02 82.04 fails 58.91
    """,
    "quoted by later papers": """
        FLASH     38.70 64.10 86.10 47.40 70.25 - -
        FNet      35.33 65.11 59.61 38.67 77.80 fails -
        S4D-LegS  60.47 86.18 89.46 88.19 93.06 91.95 84.89
    """,
}
# which of these models stands beside a run of a family of architectures with an attention function
# (None: the family's own)
_BESIDE = {
    ("mega", None): "MEGA",
    ("flash", None): "FLASH",
    ("transformer", None): "Transformer, MEGA's run",
    ("transformer", "bigbird"): "BigBird",
    ("transformer", "fnet"): "FNet",
    ("transformer", "linear"): "Linear Transformer",
    ("transformer", "linformer"): "Linformer",
    ("transformer", "local"): "Local attention",
    ("transformer", "longformer"): "Longformer",
    ("transformer", "luna"): "Luna-256",
    ("transformer", "nystrom"): "Nyströmformer",
    ("transformer", "performer"): "Performer",
    ("transformer", "sliceformer"): "Sliceformer",
    ("transformer", "synthesizer"): "Synthesizer",
}


@dataclass(frozen=True)
class Published:
    """What one source says of one model.

    Attributes:
        source: where it was published.
        accuracy: test accuracy in percent as printed there, or ``fails``, by data set; no entry
            where nothing was published.
        average: over the data sets that have a number, as printed there, or empty.
    """

    source: str
    accuracy: dict[str, str]
    average: str


def _read() -> dict[str, Published]:
    models = {}
    for source, text in _SOURCES.items():
        for line in text.strip().splitlines():
            model, numbers = re.split(r"\s{2,}", line.strip())
            *accuracies, average = ("" if word == "-" else word for word in numbers.split())
            found = {name: word for name, word in zip(BENCHMARK, accuracies, strict=True) if word}
            models[model] = Published(source, found, average)
    return models


PUBLISHED = _read()


def accuracy(family: str, attention: str | None, dataset: str) -> str:
    """Return the published test accuracy to show beside that of a model trained here.

    Args:
        family: first part of an architecture's name, such as ``mega``.
        attention: name of the attention function.
        dataset: name of a data set of the benchmark, or of one whose entry has published numbers.

    Returns:
        Percent or ``fails``, with the name of the published model: the family with that function,
        or else with its own. Empty where nothing was published.
    """
    if family == "vit":
        return published_images.accuracy(attention, dataset)
    model = _BESIDE.get((family, attention)) or _BESIDE.get((family, None))
    if model is None:
        return ""
    found = PUBLISHED[model].accuracy.get(dataset)
    if dataset in DATASETS and model in DATASETS[dataset].published:
        found = f"{DATASETS[dataset].published[model]:.2f}"
    return f"{found} ({model})" if found else ""


def of_attention(name: str) -> list[str]:
    """Return the published models that are a Transformer with an attention function."""
    return [model for (_, attention), model in _BESIDE.items() if attention == name]


def table() -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table of all models."""
    rows = [
        [model, *(row.accuracy.get(name, "") for name in BENCHMARK), row.average, row.source]
        for model, row in PUBLISHED.items()
    ]
    return ["model", *BENCHMARK, "average", "source"], rows


if __name__ == "__main__":
    from fairseq_csp.report.tables import markdown

    sys.stdout.write(markdown(*table()))
