"""Sequences of symbols as ``fairseq-preprocess`` writes them, checked before they are used.

``PREFIX.bin`` holds the symbols of all examples one after the other, ``PREFIX.idx`` a header, the
number of symbols of each example (int32) and the byte where it begins (int64).
"""

from __future__ import annotations

import os
import struct

import numpy as np
import torch
from fairseq.data import Dictionary, FairseqDataset

from fairseq_csp.data.files import PieceReader, require_file
from fairseq_csp.errors import UserError

_HEADER = struct.Struct("<9sQBQ")  # magic, version, type of the symbols, examples
_START = (b"MMIDIDX\x00\x00", 1)
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}
_BLOCK = 1 << 22  # symbols looked at together


def load_dictionary(path: str) -> Dictionary:
    """Load a ``dict.txt``.

    Raises:
        UserError: it is not one, or no file.
    """
    require_file(path)
    try:
        return Dictionary.load(path)
    except Exception as error:  # fairseq raises Exception itself for a wrong encoding
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not a dictionary of one symbol and its count a line ({reason})"
        ) from error


class TokenDataset(FairseqDataset):
    """Sequences of symbols, each read when it is asked for; item i is an int64 tensor (symbols,).

    Args:
        path: the symbols of all examples one after the other.
        dtype: their type.
        sizes: (examples,) symbols of each example.
    """

    def __init__(self, path: str, dtype: np.dtype, sizes: np.ndarray) -> None:
        self.sizes = sizes
        self._dtype = dtype
        self._begins = np.append(0, np.cumsum(sizes[:-1], dtype=np.int64)) * dtype.itemsize
        self._file = PieceReader(path)

    def __getitem__(self, index: int) -> torch.Tensor:
        size = int(self.sizes[index]) * self._dtype.itemsize
        content = self._file.read(int(self._begins[index]), size)
        return torch.from_numpy(np.frombuffer(content, self._dtype).astype(np.int64))

    def __len__(self) -> int:
        return len(self.sizes)

    def num_tokens(self, index: int) -> int:
        """Return the number of symbols of an example."""
        return int(self.sizes[index])

    def size(self, index: int) -> int:
        """Return the number of symbols of an example."""
        return int(self.sizes[index])


def load_tokens(prefix: str, dictionary: Dictionary | None = None) -> TokenDataset:
    """Open ``prefix.bin`` and ``prefix.idx``.

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
        _check_symbols(data, dtype, ends, len(dictionary))
    return TokenDataset(data, dtype, sizes)


def _check_symbols(path: str, dtype: np.dtype, ends: np.ndarray, known: int) -> None:
    file = PieceReader(path)
    for start in range(0, int(ends[-1]), _BLOCK):
        count = min(_BLOCK, int(ends[-1]) - start)
        block = np.frombuffer(file.read(start * dtype.itemsize, count * dtype.itemsize), dtype)
        if block.min() < 0 or block.max() >= known:
            index = start + np.flatnonzero((block < 0) | (block >= known))[0]
            raise UserError(
                f"{path}: example {np.searchsorted(ends, index, 'right')} has symbol "
                f"{block[index - start]}, but the dictionary has {known:,} symbols: the file is "
                "damaged or the dictionary another one"
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
    content = np.frombuffer(PieceReader(path).read(_HEADER.size, 12 * examples), np.uint8)
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
