"""Files that commands write for people: whole or not at all, with names and texts made harmless."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fairseq_csp.errors import UserError

# a spreadsheet takes what begins with one of these for a formula
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: object, most: int = 300) -> str:
    """Return a text for a table, a picture or a terminal: one line of characters that are visible.

    Args:
        text: anything; names of files that are not UTF-8, control characters and line breaks have
            their odd characters replaced.
        most: characters that are kept.
    """
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text)[:most])
    return shown + "…" if len(str(text)) > most else shown


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV; a text that a spreadsheet would take for a formula gets an apostrophe.

    Args:
        head: names of the columns.
        rows: the values, one a column.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_csv_cell(value) for value in row] for row in rows)
    return lines.getvalue()


def _csv_cell(value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    try:
        float(text)
    except ValueError:
        # before control characters are replaced, so that a tab is seen
        return ("'" if text.startswith(_FORMULA) else "") + printable(text, most=1000)
    return text


def unwritable(path: Path, error: Exception) -> str:
    """Return the sentence that tells why a file or directory cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return f"{printable(path)} cannot be written ({reason}): choose another place"


def write_files(files: Mapping[Path, str | bytes]) -> None:
    """Write the files that a command was asked for: all of them or none.

    Args:
        files: contents by path; directories that are missing are made.

    Raises:
        UserError: they cannot be written; what was there is as it was.
    """
    made: list[Path] = []
    partial = {file: file.with_name(f".{file.name[:200]}.{os.getpid()}.tmp") for file in files}
    try:
        for file, content in files.items():
            _make_directory(file.parent, made)
            if file.is_dir():
                raise IsADirectoryError(0, "it is a directory")
            raw = content if isinstance(content, bytes) else content.encode(errors="replace")
            made.append(partial[file])
            partial[file].write_bytes(raw)
        for file in files:
            partial[file].replace(file)
    except (OSError, ValueError) as error:
        for path in reversed(made):
            _remove(path)
        raise UserError(unwritable(file, error)) from None


def _make_directory(directory: Path, made: list[Path]) -> None:
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        path.mkdir()
        made.append(path)


def _remove(path: Path) -> None:
    try:
        path.rmdir() if path.is_dir() else path.unlink()
    except OSError:
        # it was never made, or something else stands in it
        return
