"""What CIFAR-10 and CIFAR-100 share: pickled batches of 32 x 32 pixels, or PNG files by class."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from fairseq_csp.errors import UserError
from preprocess.archives import NothingFoundError, RawRelease
from preprocess.image_sets import (
    ImageSetWriter,
    check_classes,
    find_tree,
    hold_out,
    keep,
    split_tree,
    write_tree,
)
from preprocess.pickles import read_pickle, whole_numbers
from preprocess.summary import Figures

SIDE = 32
SHAPE = (SIDE, SIDE, 3)
PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True)
class Batches:
    """What the pickled files of a release are called, and what is in them.

    Attributes:
        pattern: of their names; the first group matches in those of the test images.
        meta: name of the file with the names of the classes.
        labels: key of the labels.
        names: key of the names of the classes.
        classes: how many there are.
    """

    pattern: re.Pattern[str]
    meta: str
    labels: str
    names: str
    classes: int


def read_colours(
    file: BinaryIO, where: str, *, labels: str, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read one pickled batch: uint8 (images, 32, 32, 3) and labels int64 (images,).

    Args:
        file: The pickle.
        where: How to call it in a message.
        labels: Key of the labels.
        classes: How many there are.

    Raises:
        UserError: the pickle holds anything but arrays and plain containers, or not a batch.
    """
    kind = f"CIFAR-{classes} batch"
    batch = read_pickle(file, where, kind)
    missing = [key for key in ("data", labels) if key not in batch]
    if missing:
        raise UserError(f"{where} is not a {kind}: it has no {missing[0]!r}")
    images = batch["data"]
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.size % PIXELS:
        raise UserError(f"{where}: the images are no array of bytes, {PIXELS:,} an image")
    colours = images.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    found = whole_numbers(batch[labels], f"{where}: the labels")
    if found.shape != (len(colours),) or not np.isin(found, np.arange(classes)).all():
        raise UserError(f"{where}: expected one label from 0 to {classes - 1} for each image")
    return colours, found


def convert(
    batches: Batches,
    release: RawRelease,
    directory: Path,
    *,
    seed: int,
    limit: int | None,
    workers: int,
) -> Figures:
    """Read all images of a release, hold out the validation split, and write colours.

    Args:
        batches: What its pickled files are called.
        release: The release.
        directory: An empty directory.
        seed: Of the split.
        limit: Images of a split that are kept.
        workers: Processes that decode PNG files.

    Raises:
        UserError: the release holds neither batches nor images, or a damaged one.
    """
    try:
        return _convert_batches(batches, release, directory, seed=seed, limit=limit)
    except NothingFoundError:
        pass
    tree = find_tree(release, ("train", "test"))
    classes = tree.classes(release.path)
    check_classes(classes, batches.classes, release, limited=limit is not None)
    splits = split_tree(tree, seed, limit)
    return write_tree(release, directory, splits, classes, SHAPE, workers=workers)


def _convert_batches(
    batches: Batches, release: RawRelease, directory: Path, *, seed: int, limit: int | None
) -> Figures:
    def part(name: str) -> str | None:
        match = batches.pattern.search(name)
        named = PurePosixPath(name).name
        return match[0].strip("/") if match else named if named == batches.meta else None

    classes = [str(number) for number in range(batches.classes)]
    pools: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {"train": [], "test": []}
    for name, file in release.files(part, "pickled batches"):
        where = release.where(name)
        match = batches.pattern.search(name)
        if match is None:
            classes = _class_names(file, where, batches)
            continue
        batch = read_colours(file, where, labels=batches.labels, classes=batches.classes)
        pools[match[1] or "train"].append((name, *batch))
    if not any(pools.values()):
        raise NothingFoundError(f"{release.path} holds no pickled batches")
    together = {}
    for pool, found in pools.items():
        found.sort(key=lambda batch: batch[0])
        empty = np.empty((0, *SHAPE), np.uint8), np.empty(0, np.int64)
        images = np.concatenate([empty[0], *(images for _, images, _ in found)])
        together[pool] = images, np.concatenate([empty[1], *(labels for *_, labels in found)])
    images, labels = together["train"]
    train, valid = (part[:limit] for part in hold_out(len(labels), seed))
    test = keep(len(together["test"][1]), limit, seed)
    splits = {
        "train": (images[train], labels[train]),
        "valid": (images[valid], labels[valid]),
        "test": tuple(part[test] for part in together["test"]),
    }
    counts = {split: len(labels) for split, (_, labels) in splits.items()}
    writer = ImageSetWriter(directory, counts, SHAPE)
    for split, (images, labels) in splits.items():
        writer.images[split][:], writer.labels[split][:] = images, labels
    return writer.finish(classes)


def _class_names(file: BinaryIO, where: str, batches: Batches) -> list[str]:
    names = read_pickle(file, where, "list of classes").get(batches.names)
    if not isinstance(names, list) or len(names) != batches.classes:
        raise UserError(f"{where} does not name the {batches.classes} classes")
    return [
        name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names
    ]
