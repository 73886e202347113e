"""Images as sequences of grey pixels, memory-mapped.

A set is a directory with two forms, of which the first is preferred::

    input/{train,valid,test}.npy    uint8 (images, pixels), row-major     label/*.npy    int64
    input/{train,valid,test}.src    one image a line, decimal pixels      label/*.label  one a line

Opening the first reads nothing but its header, and worker processes share its pages; the second
is the published form, parsed into memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from fairseq.data import FairseqDataset

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
        self._directory = Path(directory)
        self._split = split
        self._mean = mean
        self._std = std
        self._pixels = load_pixels(directory, split)
        self.sizes = np.full(len(self._pixels), self._pixels.shape[1], dtype=np.int64)

    def __getstate__(self) -> dict[str, object]:
        state = dict(self.__dict__)
        if isinstance(self._pixels, np.memmap):
            del state["_pixels"]  # pickling would copy the file; the receiver maps it again
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        if "_pixels" not in state:
            self._pixels = load_pixels(self._directory, self._split)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels = torch.from_numpy(self._pixels[index].astype(np.float32))
        return pixels.div_(255).sub_(self._mean).div_(self._std)

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


def load_pixels(directory: str | Path, split: str) -> np.ndarray:
    """Open the images of a split: uint8 (images, pixels), memory-mapped where stored as binary.

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
        labels = np.array(_open_array(path, np.int64, dimensions=1))
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
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
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
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
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


def open_array(path: Path) -> np.ndarray:
    """Memory-map an array file.

    Raises:
        UserError: it is damaged.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header can fail in any way
        raise UserError(f"{path} is not a complete NumPy array file ({error})") from error


def _open_array(path: Path, dtype: type[np.generic], *, dimensions: int) -> np.ndarray:
    array = open_array(path)
    if array.dtype != dtype or array.ndim != dimensions:
        raise UserError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected "
            f"{np.dtype(dtype)} with {dimensions} dimension(s)"
        )
    return array
