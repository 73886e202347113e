"""A picture and the numbers behind it, side by side."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fairseq_csp.errors import UserError

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
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=file.parent) as made:
            picture, numbers = Path(made, "picture.png"), Path(made, "numbers.csv")
            figure.savefig(picture, format="png", dpi=150, bbox_inches="tight")
            with open(numbers, "w", encoding="utf-8", newline="") as lines:
                writer = csv.writer(lines)
                writer.writerow(head)
                writer.writerows(rows)
            picture.replace(file)
            numbers.replace(file.with_suffix(".csv"))
    except OSError as error:
        raise UserError(
            f"{file} and its .csv cannot be written ({error.strerror}): choose another --out"
        ) from None
