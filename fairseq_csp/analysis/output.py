"""A picture and the numbers behind it, side by side."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: "Figure", head: Sequence[str], rows: Iterable[Sequence], file: Path) -> None:
    """Write a picture as ``file`` (a PNG) and its numbers beside it, as CSV.

    Args:
        figure: the picture.
        head: names of the columns.
        rows: the numbers, a value a column.
        file: name of the picture; directories that are missing are made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="png", dpi=150, bbox_inches="tight")
    with open(file.with_suffix(".csv"), "w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(head)
        writer.writerows(rows)
