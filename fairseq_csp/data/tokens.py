"""Sequences of symbols as ``fairseq-preprocess`` writes them, checked before they are used.

``PREFIX.bin`` holds the symbols of all examples one after the other, ``PREFIX.idx`` a header, the
number of symbols of each example (int32) and the byte where it begins (int64).
"""

from __future__ import annotations

import os
import struct

import numpy as np
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset

from fairseq_csp.errors import UserError

_HEADER = struct.Struct("<9sQBQ")  # magic, version, type of the symbols, examples
_START = (b"MMIDIDX\x00\x00", 1)
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}
_BLOCK = 1 << 22  # symbols looked at together


def load_dictionary(path: str) -> Dictionary:
    """Load a ``dict.txt``.

    Raises:
        UserError: it is not one.
    """
    try:
        return Dictionary.load(path)
    except Exception as error:  # fairseq raises Exception itself for a wrong encoding
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not a dictionary of one symbol and its count a line ({reason})"
        ) from error


def load_tokens(prefix: str, dictionary: Dictionary | None = None) -> MMapIndexedDataset:
    """Open ``prefix.bin`` and ``prefix.idx``; item i is an int64 tensor (symbols,).

    The index is held against the sizes of both files before anything is allocated, and all symbols
    against the dictionary, if one is given.

    Raises:
        UserError: a file is not there or damaged, an example is empty, or a symbol is not in the
            dictionary.
    """
    index, data = f"{prefix}.idx", f"{prefix}.bin"
    for path in (index, data):
        if not os.path.isfile(path):
            folder, split = os.path.split(prefix)
            raise UserError(f"{path} is not there: {folder} has no split named {split}")
    dtype, sizes = _read_index(index)
    ends = np.cumsum(sizes, dtype=np.int64)
    if os.path.getsize(data) != ends[-1] * dtype.itemsize:
        raise UserError(
            f"{data} is {os.path.getsize(data):,} bytes long, but by {index} it must be "
            f"{ends[-1] * dtype.itemsize:,}: it is cut short or damaged, prepare it anew"
        )
    if dictionary is not None:
        _check_symbols(data, np.memmap(data, dtype, "r"), ends, len(dictionary))
    return MMapIndexedDataset(prefix)


def _check_symbols(path: str, symbols: np.ndarray, ends: np.ndarray, known: int) -> None:
    for start in range(0, len(symbols), _BLOCK):
        block = symbols[start : start + _BLOCK]
        if block.min() < 0 or block.max() >= known:
            place = start + np.flatnonzero((block < 0) | (block >= known))[0]
            raise UserError(
                f"{path}: example {np.searchsorted(ends, place, 'right')} has symbol "
                f"{symbols[place]}, but the dictionary has {known:,} symbols: the file is damaged "
                "or the dictionary another one"
            )


def _read_index(path: str) -> tuple[np.dtype, np.ndarray]:
    """Return the type of the symbols and the number of them (examples,) that each example has."""
    length = os.path.getsize(path)
    with open(path, "rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_START[0]):
        raise UserError(
            f"{path} is not an index of fairseq's memory-mapped form: it is cut short or damaged, "
            "or of another form; prepare it anew"
        )
    magic, version, kind, examples = _HEADER.unpack(header)
    if (magic, version) != _START or kind not in _TYPES:
        raise UserError(f"{path} has a header that is unknown here; prepare it anew")
    if length != _HEADER.size + 12 * examples:
        raise UserError(
            f"{path} is {length:,} bytes long, but its header tells of {examples:,} examples: it "
            "is cut short or damaged, prepare it anew"
        )
    if not examples:
        raise UserError(f"{path}: there is no example")
    dtype = np.dtype(_TYPES[kind])
    content = np.memmap(path, np.uint8, "r")[_HEADER.size :]
    sizes = content[: 4 * examples].view("<i4")
    for example in np.flatnonzero(sizes < 1)[:1]:
        raise UserError(
            f"{path}: example {example} has length {sizes[example]}, but an example must have a "
            "symbol at least: prepare the data anew"
        )
    begins = np.append(0, np.cumsum(sizes[:-1], dtype=np.int64)) * dtype.itemsize
    if not np.array_equal(content[4 * examples :].view("<i8"), begins):
        raise UserError(f"{path} is damaged: examples do not follow each other; prepare it anew")
    return dtype, sizes
