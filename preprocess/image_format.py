"""The processed image layout, binary form: what :mod:`fairseq_csp.data.pixels` reads.

NAME/input/{train,valid,test}.npy    uint8 (images, pixels)
NAME/label/{train,valid,test}.npy    int64 (images,)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from preprocess.summary import SPLITS, Figures, SplitFigures


class ImageDatasetWriter:
    """Takes images one at a time, or many at once, and appends them to their split.

    Args:
        directory: An empty directory, see :func:`preprocess.directories.new_directory`.
        pixels: Pixels of one image.
    """

    def __init__(self, directory: Path, *, pixels: int) -> None:
        self._directory = directory
        self._pixels = pixels
        self._labels: dict[str, list[int]] = {split: [] for split in SPLITS}
        (directory / "input").mkdir()
        (directory / "label").mkdir()
        self._files = {split: (directory / "input" / f"{split}.npy").open("wb") for split in SPLITS}
        for split in SPLITS:
            self._write_header(split)

    def __enter__(self) -> ImageDatasetWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()

    def _write_header(self, split: str) -> None:
        # NumPy leaves room in a header for the first dimension to grow
        header = {
            "descr": "|u1",
            "fortran_order": False,
            "shape": (len(self._labels[split]), self._pixels),
        }
        self._files[split].seek(0)
        np.lib.format.write_array_header_1_0(self._files[split], header)

    def add(self, split: str, images: np.ndarray, labels: Sequence[int]) -> None:
        """Append images, uint8 of ``len(labels) * pixels`` values, and their labels."""
        assert images.dtype == np.uint8 and images.size == len(labels) * self._pixels
        self._files[split].write(images.tobytes())
        self._labels[split].extend(int(label) for label in labels)

    def finish(self, *, classes: int | None = None) -> Figures:
        """Complete the headers, write the labels, and return the figures.

        Args:
            classes: How many there are; without it, as many as the largest label says.
        """
        labels = {split: np.array(self._labels[split], dtype=np.int64) for split in SPLITS}
        for split in SPLITS:
            self._write_header(split)
            np.save(self._directory / "label" / f"{split}.npy", labels[split])
        classes = classes or 1 + max(int(values.max(initial=0)) for values in labels.values())
        names = [str(label) for label in range(classes)]
        return Figures(
            {
                split: SplitFigures.of({"input": np.full(len(values), self._pixels)}, values, names)
                for split, values in labels.items()
            }
        )
