"""Published test accuracies on the Long Range Arena, in percent.

``python -m fairseq_csp.published`` prints them as a Markdown table.

Sources: the Transformer in MEGA's own run, Luna, S4-v2, MEGA and MEGA-chunk from arXiv 2209.10655;
S5 from arXiv 2208.04933; Megalodon from arXiv 2404.08801; FLASH from a secondary source;
Sliceformer (arXiv 2310.17683) from its authors' sheet. For CSP itself there is none at hand.
"""

import sys

from fairseq_csp.recipes import DATASETS

FAILS = "fails"
# fmt: off
# the data sets in the order of DATASETS, then the average; that of a model that fails on Path-X is
# over the other five
_ROWS: dict[str, tuple[float | str | None, ...]] = {
    "Transformer": (37.11, 65.21, 79.14, 42.94, 71.83, FAILS, 59.24),
    "Luna-256": (37.98, 65.78, 79.56, 47.86, 78.55, FAILS, 61.95),
    "FLASH": (38.70, 64.10, 86.10, 47.40, 70.25, None, None),
    "Sliceformer": (37.65, 64.60, 62.23, 48.02, 82.04, FAILS, 58.91),
    "S4-v2": (59.60, 86.82, 90.90, 88.65, 94.20, 96.35, 86.09),
    "S5": (62.15, 89.31, 91.40, 88.00, 95.33, 98.58, 87.46),
    "MEGA": (63.14, 90.43, 91.25, 90.44, 96.01, 97.98, 88.21),
    "MEGA-chunk": (58.76, 90.19, 90.97, 85.80, 94.41, 93.81, 85.66),
    "Megalodon": (63.79, 90.48, 91.76, 89.42, 98.13, 98.17, 88.63),
}
# fmt: on
COLUMNS = [*DATASETS, "average"]
_OF_FAMILY = {"transformer": "Transformer", "mega": "MEGA", "flash": "FLASH"}


def accuracy(family: str, dataset: str) -> str:
    """Return what was published for a family of architectures with its own attention.

    Args:
        family: first word of an architecture's name, such as ``mega``.
        dataset: name of a data set.

    Returns:
        The test accuracy in percent, ``fails``, or an empty string where nothing was published.
    """
    if family not in _OF_FAMILY or dataset not in DATASETS:
        return ""
    return _shown(_ROWS[_OF_FAMILY[family]][COLUMNS.index(dataset)])


def table() -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table of all models."""
    return ["model", *COLUMNS], [[name, *map(_shown, row)] for name, row in _ROWS.items()]


def _shown(value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.2f}"


if __name__ == "__main__":
    from fairseq_csp.report.tables import markdown

    sys.stdout.write(markdown(*table()))
