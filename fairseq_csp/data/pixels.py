"""Images as sequences of grey pixels, read one at a time.

A set is a directory with two forms, of which the first is preferred::

    input/{train,valid,test}.npy    uint8 (images, pixels), row-major     label/*.npy    int64
    input/{train,valid,test}.src    one image a line, decimal pixels      label/*.label  one a line

Opening the first reads nothing but its header, and worker processes share its pages in the
system's cache; the second is the published form, parsed into memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from fairseq.data import FairseqDataset

from fairseq_csp.data.files import PieceReader, numbered_lines, open_file
from fairseq_csp.errors import UserError

_PIXELS = {str(value).encode(): value for value in range(256)}
_LABEL_DIGITS = 4


class PixelDataset(FairseqDataset):
    """One split of an image set; item i is a float32 tensor (pixels,), ``(x / 255 - mean) / std``.

    Args:
        directory: A prepared set, such as ``lra_data/cifar10``.
        split: ``train``, ``valid`` or ``test``.
        mean: Subtracted from the pixels, which lie in [0, 1].
        std: What the pixels are divided by then.

    Raises:
        UserError: the split is missing or damaged.
    """

    def __init__(self, directory: str | Path, split: str, *, mean: float, std: float) -> None:
        self._mean = mean
        self._std = std
        self._pixels = open_pixels(directory, split)
        self.sizes = np.full(len(self._pixels), self._pixels.shape[1], dtype=np.int64)

    def __getitem__(self, index: int) -> torch.Tensor:
        return normalised(self._pixels[index], self._mean, self._std)

    def __len__(self) -> int:
        return len(self._pixels)

    def collater(self, samples: list[torch.Tensor]) -> torch.Tensor:
        """Stack images to (batch, pixels)."""
        return torch.stack(samples)

    def num_tokens(self, index: int) -> int:
        """Return the number of pixels of an image."""
        return int(self.sizes[index])

    def size(self, index: int) -> int:
        """Return the number of pixels of an image."""
        return int(self.sizes[index])


def normalised(pixels: np.ndarray, mean: float, std: float) -> torch.Tensor:
    """Return the pixels of an image as a model takes them, float32 (pixels,).

    Args:
        pixels: uint8 (pixels,).
        mean: subtracted from the pixels, which lie in [0, 1].
        std: what they are divided by then.
    """
    return torch.from_numpy(pixels.astype(np.float32)).div_(255).sub_(mean).div_(std)


class ArrayFile:
    """An array in a NumPy file, of which single items are read.

    Args:
        path: the file.

    Attributes:
        shape: of the array; the first dimension counts the items.
        ndim: number of dimensions.
        size: number of values.
        dtype: of the values.

    Raises:
        UserError: it is damaged, holds objects, or is stored column after column.
    """

    def __init__(self, path: Path) -> None:
        self._file = PieceReader(path)
        try:
            with open_file(path) as file:
                version = np.lib.format.read_magic(file)
                read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
                self.shape, by_columns, self.dtype = read(file)
                self._start = file.tell()
                there = file.seek(0, os.SEEK_END) - self._start
        except Exception as error:  # a damaged header can fail in any way
            raise UserError(f"{path} is not a complete NumPy array file ({error})") from error
        if self.dtype.hasobject or by_columns or not self.shape:
            raise UserError(
                f"{path} holds {self.dtype} of shape {self.shape}, expected numbers, row after row"
            )
        self.ndim = len(self.shape)
        self.size = math.prod(self.shape)
        self._item = math.prod(self.shape[1:]) * self.dtype.itemsize
        if self.shape[0] * self._item != there:
            raise UserError(
                f"{path} is not a complete NumPy array file (its header tells of "
                f"{self.shape[0] * self._item:,} bytes, but {there:,} follow)"
            )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        return self._read(range(len(self))[index], 1).reshape(self.shape[1:])[()]

    def load(self) -> np.ndarray:
        """Return the whole array."""
        return self._read(0, len(self)).reshape(self.shape)

    def _read(self, first: int, items: int) -> np.ndarray:
        content = self._file.read(self._start + first * self._item, items * self._item)
        return np.frombuffer(content, self.dtype)


def open_pixels(directory: str | Path, split: str) -> ArrayFile | np.ndarray:
    """Open the images of a split: uint8 (images, pixels), of which each may be asked for.

    Raises:
        UserError: there is no such split, or the file is damaged; it is named, with the line.
    """
    path = _find(directory, "input", split, ".src")
    if path.suffix == ".npy":
        array = _open_array(path, np.uint8, dimensions=2)
        if not array.size:
            raise UserError(f"{path} holds no images")
        return array
    pixels = bytearray()
    lines = 0
    for line in read_pixel_lines(path):
        pixels += line
        lines += 1
    if not lines:
        raise UserError(f"{path} holds no images")
    return np.frombuffer(pixels, dtype=np.uint8).reshape(lines, -1)


def load_pixels(directory: str | Path, split: str) -> np.ndarray:
    """Return the images of a split: uint8 (images, pixels).

    Raises:
        UserError: there is no such split, or the file is damaged; it is named, with the line.
    """
    found = open_pixels(directory, split)
    return found.load() if isinstance(found, ArrayFile) else found


def pixels_of_an_image(directory: str | Path, split: str) -> int | None:
    """Return how many pixels the first image of a split has; None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    stem = Path(directory) / "input" / split
    if stem.with_name(f"{split}.npy").is_file():
        return open_pixels(directory, split).shape[1]
    text = stem.with_name(f"{split}.src")
    return len(next(read_pixel_lines(text), b"")) or None if text.is_file() else None


def load_labels(directory: str | Path, split: str, images: int | None = None) -> np.ndarray:
    """Load the labels of a split: int64 (images,), none negative.

    Args:
        directory: A prepared set.
        split: ``train``, ``valid`` or ``test``.
        images: How many there must be, if given.

    Raises:
        UserError: there is no such split, the file is damaged, or holds another number.
    """
    path = _find(directory, "label", split, ".label")
    if path.suffix == ".npy":
        labels = _open_array(path, np.int64, dimensions=1).load()
    else:
        labels = np.array(list(read_label_lines(path)), dtype=np.int64)
    if images is not None and len(labels) != images:
        raise UserError(f"{path} holds {len(labels):,} labels for {images:,} images")
    if len(labels) and labels.min() < 0:
        raise UserError(f"{path}: label {labels.min()} is negative")
    return labels


def read_pixel_lines(path: Path) -> Iterator[bytes]:
    """Yield the images of a ``.src`` file, one byte a pixel.

    Raises:
        UserError: a word is not a whole number from 0 to 255, or a line has another width than
            the first.
    """
    width = None
    with open_file(path) as file:
        for number, line in numbered_lines(file, str(path)):
            try:
                pixels = bytes(map(_PIXELS.__getitem__, line.split()))
            except KeyError as error:
                raise UserError(
                    f"{path}, line {number}: {error.args[0][:40].decode(errors='replace')!r} is "
                    "not a whole number from 0 to 255"
                ) from error
            if width is None:
                width = len(pixels)
            if not pixels:
                raise UserError(f"{path}, line {number}: the line is empty")
            if len(pixels) != width:
                raise UserError(
                    f"{path}, line {number}: {len(pixels)} pixels, the first line has {width}"
                )
            yield pixels


def read_label_lines(path: Path) -> Iterator[int]:
    """Yield the labels of a ``.label`` file.

    Raises:
        UserError: a line is not a whole number, or one too large to be a class.
    """
    with open_file(path) as file:
        for number, line in numbered_lines(file, str(path)):
            word = line.strip()
            if not word.isdigit() or len(word) > _LABEL_DIGITS:
                raise UserError(
                    f"{path}, line {number}: {word[:40].decode(errors='replace')!r} is not a "
                    f"label, a whole number of at most {_LABEL_DIGITS} digits"
                )
            yield int(word)


def _find(directory: str | Path, kind: str, split: str, text_suffix: str) -> Path:
    stem = Path(directory) / kind / split
    for suffix in (".npy", text_suffix):
        path = stem.with_name(split + suffix)
        if path.is_file():
            return path
    raise UserError(
        f"{stem}: there is neither {split}.npy nor {split}{text_suffix}: is {directory} the "
        "prepared data of an image task? `python -m preprocess --help` tells how to prepare it"
    )


def _open_array(path: Path, dtype: type[np.generic], *, dimensions: int) -> ArrayFile:
    array = ArrayFile(path)
    if array.dtype != dtype or array.ndim != dimensions:
        raise UserError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected "
            f"{np.dtype(dtype)} with {dimensions} dimension(s)"
        )
    return array
