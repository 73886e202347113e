"""A picture and the numbers behind it, side by side."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_csp.output import csv_text, write_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: "Figure", head: Sequence[str], rows: Iterable[Sequence], file: Path) -> None:
    """Write a picture as ``file`` (a PNG) and its numbers beside it, as CSV.

    Args:
        figure: the picture.
        head: names of the columns.
        rows: the numbers, a value a column.
        file: name of the picture; directories that are missing are made.

    Raises:
        UserError: they cannot be written.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150, bbox_inches="tight")
    write_files({file: picture.getvalue(), file.with_suffix(".csv"): csv_text(head, rows)})
