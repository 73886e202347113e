"""CIFAR-10 in grey: photographs of 32 x 32 pixels, ten classes.

    python -m preprocess cifar10 --raw cifar-10-python.tar.gz   45,000/5,000/10,000 images
    python -m preprocess cifar10 --raw ... --side 16            the same, of 16 x 16 pixels
    python -m preprocess cifar10 --demo                         small synthetic gratings

The raw release is the archive of pickled batches, or the directory that unpacks from it, or a
directory or archive of PNG files `{train,test}/CLASS/*.png` (classes in alphabetical order; of 16
bits the upper 8 are taken, transparent images are refused).
Writes `input/*.npy` and `label/*.npy`.

Grey is ITU-R 601 luma, as PIL's mode `L` has it. A tenth of the training images, chosen by
`--seed`, becomes the validation split.
"""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from fairseq_csp.datasets import DATASETS
from fairseq_csp.errors import UserError
from preprocess.archives import RawRelease
from preprocess.cifar import SIDE, read_colours
from preprocess.image_format import ImageDatasetWriter
from preprocess.image_sets import hold_out, keep
from preprocess.images import read_image, to_grey
from preprocess.preparation import add_common_arguments, prepare, standin_source
from preprocess.sources import require_raw
from preprocess.summary import Figures

DATA_SET = DATASETS["cifar10"]
CLASSES = 10
SIDES = (8, 16, SIDE)
DEMO_COUNTS = {"train": 3000, "valid": 500, "test": 500}

_BATCH = re.compile(r"(?:^|/)(?:data_batch_[1-5]|(test)_batch)$")
_PNG = re.compile(r"(?:^|/)(train|test)/([^/]+)/[^/]+\.png$")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this data set."""
    add_common_arguments(parser, DATA_SET)
    parser.add_argument(
        "--side",
        type=int,
        choices=SIDES,
        default=SIDE,
        help="pixels of a side; below 32 each is the mean of a block (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Prepare the set from its raw release, or make the stand-in."""
    if arguments.demo and arguments.side != SIDE:
        raise UserError(f"--side {arguments.side} cannot be combined with --demo: leave out one")
    options = {"seed": arguments.seed, "limit": arguments.limit}
    if arguments.demo:
        source = standin_source(DATA_SET, arguments, "gratings of five directions, two widths")
        fill, expected = write_demo, DEMO_COUNTS
    else:
        release = RawRelease(require_raw(DATA_SET, arguments))
        source = release.description
        options["side"] = arguments.side
        fill, expected = partial(convert_release, release), DATA_SET.counts
    prepare(
        DATA_SET,
        arguments,
        partial(fill, **options),
        expected=expected,
        source=source,
        options=options,
        changed=arguments.side != SIDE,
    )


def convert_release(
    release: RawRelease,
    directory: Path,
    *,
    seed: int,
    limit: int | None = None,
    side: int = SIDE,
) -> Figures:
    """Read all images of a release, hold out the validation split, and write grey pixels.

    Args:
        release: The release.
        directory: An empty directory.
        seed: Of the split.
        limit: Images of a split that are kept.
        side: One of ``SIDES``, to which the images are brought.

    Raises:
        UserError: the release holds neither batches nor PNG files, or a damaged one.
    """
    pools = _read(release)
    images, labels = pools["train"]
    train, valid = hold_out(len(labels), seed)
    test = keep(len(pools["test"][1]), limit, seed)
    splits = {
        "train": (images[train], labels[train]),
        "valid": (images[valid], labels[valid]),
        "test": tuple(part[test] for part in pools["test"]),
    }
    with ImageDatasetWriter(directory, pixels=side * side) as writer:
        for split, (images, labels) in splits.items():
            writer.add(split, _shrink(images[:limit], side), labels[:limit])
        return writer.finish(classes=CLASSES)


def _read(release: RawRelease) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return grey images (n, 1024) and labels (n,) of ``train`` and ``test``, by file name."""
    batches: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {"train": [], "test": []}
    photographs: dict[str, list[tuple[str, str, np.ndarray]]] = {"train": [], "test": []}
    for name, file in release.files(
        lambda name: (match := _BATCH.search(name) or _PNG.search(name)) and match[0].strip("/"),
        "batches cifar-10-batches-py/data_batch_*, test_batch, nor {train,test}/CLASS/*.png",
    ):
        if match := _BATCH.search(name):
            pool = match[1] or "train"
            batches[pool].append((name, *read_batch(file, release.where(name))))
        else:
            pool, label = _PNG.search(name).groups()
            image = to_grey(read_image(file, release.where(name), side=SIDE))
            photographs[pool].append((name, label, image.reshape(1, -1)))

    if any(batches.values()) and any(photographs.values()):
        raise UserError(f"{release.path} has both batches and PNG files; give --raw one of them")
    names = sorted({label for pool in photographs.values() for _, label, _ in pool})
    if names and len(names) != CLASSES:
        raise UserError(f"{release.path} has {len(names)} class folders, expected {CLASSES}")
    for pool, found in photographs.items():
        batches[pool] += [(name, grey, [names.index(label)]) for name, label, grey in found]
    empty = np.empty((0, SIDE * SIDE), dtype=np.uint8)
    pools = {}
    for pool, found in batches.items():
        found.sort(key=lambda batch: batch[0])
        pools[pool] = (
            np.concatenate([empty, *(images for _, images, _ in found)]),
            np.concatenate([[], *(labels for _, _, labels in found)]).astype(np.int64),
        )
    return pools


def read_batch(file: BinaryIO, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one pickled batch: grey images uint8 (n, 1024), labels int64 (n,).

    Raises:
        UserError: the pickle holds anything but arrays and plain containers, or not a batch.
    """
    colours, labels = read_colours(file, where, labels="labels", classes=CLASSES)
    return _grey(colours), labels


def _grey(colours: np.ndarray) -> np.ndarray:
    """Turn RGB uint8 (n, 32, 32, 3) into ITU-R 601 luma, uint8 (n, 1024)."""
    # one tall image, so that PIL is called once
    tall = Image.fromarray(np.ascontiguousarray(colours).reshape(-1, SIDE, 3))
    return to_grey(tall).reshape(-1, SIDE * SIDE)


def _shrink(images: np.ndarray, side: int) -> np.ndarray:
    """Replace blocks of pixels by their mean: uint8 (n, 1024) to (n, side * side)."""
    block = SIDE // side
    means = images.reshape(-1, side, block, side, block).mean(axis=(2, 4))
    return means.round().astype(np.uint8).reshape(-1, side * side)


def write_demo(directory: Path, *, seed: int, limit: int | None = None) -> Figures:
    """Write gratings whose orientation (five) and width (two) make the class, under noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    with ImageDatasetWriter(directory, pixels=SIDE * SIDE) as writer:
        for split, count in DEMO_COUNTS.items():
            labels = rng.integers(0, CLASSES, min(count, limit or count))
            angle = (labels % 5) * np.pi / 5 + rng.normal(0, 0.08, labels.size)
            period = np.where(labels < 5, 5.0, 10.0) * rng.uniform(0.9, 1.1, labels.size)
            phase = rng.uniform(0, 2 * np.pi, labels.size)
            distance = np.cos(angle)[:, None, None] * columns + np.sin(angle)[:, None, None] * rows
            waves = np.sin(2 * np.pi * distance / period[:, None, None] + phase[:, None, None])
            noisy = 128 + 70 * waves + rng.normal(0, 30, waves.shape)
            writer.add(split, noisy.clip(0, 255).astype(np.uint8), labels)
        return writer.finish(classes=CLASSES)
