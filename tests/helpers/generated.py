"""Tiny data sets in the processed layout."""

import numpy as np
import torch
from fairseq.data import Dictionary, indexed_dataset

SPLITS = {"train": 12, "valid": 5, "test": 3}
SYMBOLS = 12


def write_text(directory, *, documents=1, classes=2, longest=30, splits=SPLITS):
    """A text set whose sides have lengths of their own."""
    rng = np.random.default_rng(0)
    symbols = Dictionary()
    for number in range(SYMBOLS):
        symbols.add_symbol(f"w{number}")
    labels = Dictionary()
    for number in range(classes):
        labels.add_symbol(str(number))
    labels.pad_to_multiple_(8)
    sides = ["src-bin", "src1-bin"][:documents]
    for side in sides:
        _write_dictionary(directory / side, symbols)
    if documents == 2:
        _write_dictionary(directory / "dict-bin", symbols)
    _write_dictionary(directory / "label-bin", labels)
    for split, examples in splits.items():
        for side in sides:
            rows = [
                [*rng.integers(4, 4 + SYMBOLS, rng.integers(1, longest)), symbols.eos()]
                for _ in range(examples)
            ]
            # the longest there may be, and the shortest
            rows[0] = [4] * (longest - 1) + [symbols.eos()]
            rows[1] = [4, symbols.eos()]
            _write_rows(directory / side / split, rows, symbols)
        # each class there is, at least in training
        classes_of = [4 + row % classes for row in range(examples)]
        _write_rows(
            directory / "label-bin" / split, [[x, labels.eos()] for x in classes_of], labels
        )
    return directory


def write_images(directory, *, pixels=16, classes=2, splits=SPLITS):
    """An image set in the memory-mapped form."""
    rng = np.random.default_rng(0)
    for kind in ("input", "label"):
        (directory / kind).mkdir(parents=True)
    for split, examples in splits.items():
        images = rng.integers(0, 256, (examples, pixels), dtype=np.uint8)
        np.save(directory / "input" / f"{split}.npy", images)
        np.save(directory / "label" / f"{split}.npy", np.arange(examples) % classes)
    return directory


def _write_dictionary(directory, dictionary):
    directory.mkdir(parents=True)
    dictionary.save(str(directory / "dict.txt"))


def _write_rows(path, rows, dictionary):
    builder = indexed_dataset.make_builder(f"{path}.bin", impl="mmap", vocab_size=len(dictionary))
    for row in rows:
        builder.add_item(torch.IntTensor(row))
    builder.finalize(f"{path}.idx")
