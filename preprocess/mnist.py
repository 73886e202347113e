"""MNIST: handwritten digits of 28 x 28 grey pixels.

    python -m preprocess mnist --raw DIRECTORY   54,000/6,000/10,000 images
    python -m preprocess mnist --demo            small synthetic gratings

The raw release is a directory or archive that holds the four idx files `train-images-idx3-ubyte`,
`train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, each perhaps as
`.gz`, or PNG files `{train,test}/DIGIT/*.png`. Writes `input/*.npy`, `label/*.npy` and
`images.json`.

A tenth of the training images, chosen by `--seed`, becomes the validation split.
"""

from __future__ import annotations

import argparse
import gzip
import re
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fairseq_csp.data.files import read_whole
from fairseq_csp.datasets import IMAGE_SETS
from fairseq_csp.errors import UserError
from preprocess.archives import NothingFoundError, RawRelease
from preprocess.image_sets import (
    ImageSetWriter,
    check_classes,
    find_tree,
    hold_out,
    keep,
    prepare_images,
    split_tree,
    write_tree,
)
from preprocess.preparation import add_common_arguments
from preprocess.summary import Figures

DATA_SET = IMAGE_SETS["mnist"]
SHAPE = (28, 28, 1)
# the files begin with a number for their kind and one for each dimension
MAGIC = {"images": (2051, 3), "labels": (2049, 1)}
_IDX = re.compile(r"(?:^|/)(train|t10k)-(images|labels)[-.]idx[13]-ubyte(\.gz)?$")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this data set."""
    add_common_arguments(parser, DATA_SET)


def run(arguments: argparse.Namespace) -> None:
    """Prepare the set from its raw release, or make the stand-in."""
    prepare_images(DATA_SET, arguments, convert, SHAPE)


def convert(
    release: RawRelease, directory: Path, *, seed: int, limit: int | None, workers: int
) -> Figures:
    """Read all images of a release, hold out the validation split, and write grey pixels.

    Raises:
        UserError: the release holds neither idx files nor images, or a damaged one.
    """
    try:
        found = _read_idx(release)
    except NothingFoundError:
        tree = find_tree(release, ("train", "test"))
        classes = tree.classes(release.path)
        check_classes(classes, DATA_SET.classes, release, limited=limit is not None)
        splits = split_tree(tree, seed, limit)
        return write_tree(release, directory, splits, classes, SHAPE, workers=workers)
    train, valid = (part[:limit] for part in hold_out(len(found["train", "labels"]), seed))
    test = keep(len(found["t10k", "labels"]), limit, seed)
    parts = {"train": ("train", train), "valid": ("train", valid), "test": ("t10k", test)}
    writer = ImageSetWriter(
        directory, {split: len(chosen) for split, (_, chosen) in parts.items()}, SHAPE
    )
    for split, (pool, chosen) in parts.items():
        writer.images[split][:, :, :, 0] = found[pool, "images"][chosen]
        writer.labels[split][:] = found[pool, "labels"][chosen]
    return writer.finish([str(digit) for digit in range(DATA_SET.classes)])


def _read_idx(release: RawRelease) -> dict[tuple[str, str], np.ndarray]:
    """Return images uint8 (images, 28, 28) and labels of the pools ``train`` and ``t10k``."""
    found = {}

    def part(name: str) -> str | None:
        match = _IDX.search(name)
        return match and f"{match[1]}-{match[2]}"

    for name, file in release.files(part, "idx files"):
        pool, kind, packed = _IDX.search(name).groups()
        where = release.where(name)
        found[pool, kind] = _read_array(
            gzip.GzipFile(fileobj=file) if packed else file, where, kind
        )
    for pool in ("train", "t10k"):
        for kind in MAGIC:
            if (pool, kind) not in found:
                raise UserError(f"{release.path} has no file {pool}-{kind}-idx*-ubyte")
        images, labels = found[pool, "images"], found[pool, "labels"]
        if len(images) != len(labels) or images.shape[1:] != SHAPE[:2]:
            raise UserError(
                f"{release.path}: {pool} has {len(images):,} images of {images.shape[1]} x "
                f"{images.shape[2]} pixels and {len(labels):,} labels, expected 28 x 28 pixels "
                "and a label for each"
            )
        if len(labels) and labels.max() >= DATA_SET.classes:
            raise UserError(f"{release.path}: {pool} has a label {labels.max()} above 9")
    return found


def _read_array(file: BinaryIO, where: str, kind: str) -> np.ndarray:
    try:
        content = read_whole(file, where)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where} is cut short or damaged ({error}): download it again") from error
    magic, dimensions = MAGIC[kind]
    head = np.frombuffer(content[: 4 * (1 + dimensions)], ">u4").astype(np.int64)
    if len(head) != 1 + dimensions or head[0] != magic:
        raise UserError(f"{where} is no idx file of {kind}")
    body = content[4 * len(head) :]
    # Python's numbers: a product of what a damaged file claims may be of any size
    if len(body) != int(np.prod([int(size) for size in head[1:]], dtype=object)):
        raise UserError(
            f"{where} claims {' x '.join(map(str, head[1:]))} bytes and holds {len(body):,}: it is "
            "cut short or damaged"
        )
    return np.frombuffer(body, np.uint8).reshape(head[1:])
