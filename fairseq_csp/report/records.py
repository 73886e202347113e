"""Files that a run left, read without trust: every value is checked for its type before its use."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_csp.errors import UserError
from fairseq_csp.output import printable

# more than any record of a run has
MOST_BYTES = 1 << 24
# whole numbers up to this are exact as floating ones
MOST = 2.0**53


class OddValueError(ValueError):
    """A value of another kind than its key promises."""


class Fields:
    """A table of values by key, as a file has it.

    Args:
        values: the table; anything, for a file may hold anything.
        name: what it is called in a message.

    Raises:
        OddValueError: it is no table; so do the methods where a value is of another kind.
    """

    def __init__(self, values: Any, name: str) -> None:
        if not isinstance(values, Mapping):
            raise OddValueError(f"{name} is {_short(values)}")
        self.values = values

    def fields(self, key: str) -> "Fields":
        """Return a table in this one; an empty one where there is none."""
        value = self.values.get(key)
        return Fields({} if value is None else value, key)

    def text(self, key: str) -> str | None:
        """Return a text, or None where there is none."""
        value = self.values.get(key)
        if value is not None and (not isinstance(value, str) or "\0" in value):
            raise OddValueError(f"{key} is {_short(value)}, not a text")
        return value

    def texts(self, key: str) -> list[str]:
        """Return a list of texts; an empty one where there is none."""
        values = self.values.get(key)
        if values is None:
            return []
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise OddValueError(f"{key} is {_short(values)}, not a list of texts")
        return values

    def number(self, key: str, low: float = 0.0, high: float = MOST) -> float | None:
        """Return a number from ``low`` to ``high``, or None where there is none."""
        value = self.values.get(key)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if value is None:
            return None
        kind = isinstance(value, int | float) and not isinstance(value, bool)
        if not kind or not low <= value <= high:
            raise OddValueError(f"{key} is {_short(value)}, not a number from {low:g} to {high:g}")
        return value

    def whole(self, key: str, low: int = 0, high: int = int(MOST)) -> int | None:
        """Return a whole number from ``low`` to ``high``, or None where there is none."""
        value = self.number(key, low, high)
        if value is not None and value != int(value):
            raise OddValueError(f"{key} is {_short(value)}, not a whole number")
        return None if value is None else int(value)


def _short(value: object) -> str:
    if isinstance(value, str | float | bool) or value is None:
        return repr(printable(value, 40) if isinstance(value, str) else value)
    if isinstance(value, int) and abs(value) < MOST:
        return repr(value)
    # its own repr may be without end
    return f"a large {type(value).__name__}" if isinstance(value, int) else type(value).__name__


def read_record(file: Path) -> dict:
    """Read what a run wrote down last.

    Args:
        file: its ``command.jsonl``, of which the last line is read, or another file of one object.

    Returns:
        The object; an empty one where the file is not there.

    Raises:
        UserError: it is empty, half written or damaged.
    """
    records = read_records(file)
    return records[-1] if records else {}


def read_records(file: Path) -> list[dict]:
    """Read all that a run wrote down, one object a start.

    Args:
        file: its ``command.jsonl``, or another file of one object.

    Returns:
        The objects, oldest first, without lines before the last one that are damaged; none where
        the file is not there.

    Raises:
        UserError: it is empty, half written or damaged.
    """
    try:
        if not file.exists():
            return []
        # a pipe would never end
        if not file.is_file() or file.stat().st_size > MOST_BYTES:
            raise ValueError
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        text = ""
    records = [_object(line) for line in (text.splitlines() if file.suffix == ".jsonl" else [text])]
    if not records or records[-1] is None:
        raise UserError(f"{printable(file)} is empty or damaged: remove it, or the whole run")
    return [record for record in records if record is not None]


def _object(text: str) -> dict | None:
    try:
        value = json.loads(text)
    except (RecursionError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_checkpoint(file: Path) -> Fields:
    """Read a checkpoint's tables; of its weights only the sizes are looked at.

    Args:
        file: the checkpoint.

    Returns:
        The tables; empty where there is no file.

    Raises:
        Exception: any, where it is damaged or something else.
    """
    if not file.exists():
        return Fields({}, file.name)
    if not file.is_file():
        raise OddValueError("it is no file")
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise OddValueError("it is compressed, as torch writes none")
    return Fields(_load(file), "the checkpoint")


def _load(file: Path) -> object:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        # torch maps no file of such a name
        with open(file, "rb") as opened:
            return torch.load(opened, map_location="cpu", weights_only=True)
    # mapped: the weights are not read
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def is_finite(*values: float) -> bool:
    """Tell whether all numbers can be drawn and averaged."""
    return all(abs(value) <= MOST for value in values)
