"""Any images by class folder, such as ImageNet: PNG or JPEG files of any size.

    python -m preprocess image-folder --raw DIRECTORY --out lra_data/NAME
    python -m preprocess image-folder --demo          small synthetic gratings, as JPEG files

The raw data is a directory (or an archive, for small images) with `{train,valid|val,test}/CLASS/*`;
classes are the sorted folder names. Where `val` or `valid` is there and `test` is not, it is the
test split, as with ImageNet; where there is no validation split, a tenth of the training images,
chosen by `--seed`, becomes one.

Images that all have one size of at most 128 pixels are decoded once, into `input/*.npy`. Larger
ones, or of several sizes, stay where they are and are decoded while loading (`--num-workers` of
fairseq-train): `input/*.npy` holds their paths, `images.json` the directory. Grey images among
colours have three channels alike; `--grey` makes all grey.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fairseq_csp.data.images import FORMATS, Description
from fairseq_csp.datasets import IMAGE_SETS
from fairseq_csp.errors import UserError
from preprocess.archives import RawRelease
from preprocess.image_sets import (
    Tree,
    find_tree,
    save_standin_files,
    split_tree,
    write_labels,
    write_tree,
)
from preprocess.preparation import add_common_arguments, prepare, standin_source
from preprocess.sources import require_raw
from preprocess.summary import Figures

DATA_SET = IMAGE_SETS["image-folder"]
LARGEST_SIDE = 128
# of the photographs of ImageNet, as is usual for any: reading all files for their own takes hours
COLOURS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = (0.449,), (0.226,)
DEMO_COUNTS = {"train": 300, "valid": 50, "test": 50}
DEMO_SIZES = ((72, 96), (96, 72), (80, 80))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this data set."""
    add_common_arguments(parser, DATA_SET)
    parser.add_argument("--grey", action="store_true", help="make all images grey")


def run(arguments: argparse.Namespace) -> None:
    """Prepare the set from its directory, or make the stand-in."""
    options = {"seed": arguments.seed, "limit": arguments.limit, "grey": arguments.grey}
    if arguments.demo:
        source = standin_source(DATA_SET, arguments, "gratings of five tilts and two widths")
        prepare(DATA_SET, arguments, partial(write_demo, **options), expected=DEMO_COUNTS,
                source=source, options=options)  # fmt: skip
        return
    release = RawRelease(require_raw(DATA_SET, arguments))
    fill = partial(convert, release, workers=arguments.workers, **options)
    prepare(DATA_SET, arguments, fill, expected={}, source=release.description, options=options)


def convert(
    release: RawRelease,
    directory: Path,
    *,
    seed: int,
    limit: int | None,
    grey: bool,
    workers: int,
) -> Figures:
    """Decode small images, or list the files of large ones.

    Raises:
        UserError: there are none, one is damaged, class folders are missing in a split, or large
            images are in an archive.
    """
    tree = find_tree(release, ("train", "valid", "test"))
    classes = tree.classes(release.path)
    splits = split_tree(tree, seed, limit)
    sizes = _sizes(release, tree)
    height, width = size = next(iter(sizes.values()))
    if len(set(sizes.values())) == 1 and max(size) <= LARGEST_SIDE:
        shape = (height, width, 1 if grey else 3)
        return write_tree(release, directory, splits, classes, shape, workers=workers)
    if not release.path.is_dir():
        raise UserError(
            f"{release.path} holds images of several sizes or of more than {LARGEST_SIDE} pixels, "
            "which stay files: unpack it and name the directory with --raw"
        )
    root = str(release.path.resolve())
    return write_paths(directory, splits, classes, sizes, root=root, grey=grey)


def _sizes(release: RawRelease, tree: Tree) -> dict[str, tuple[int, int]]:
    """Read height and width of each image from the head of its file."""
    names = {name for images in tree.pools.values() for name in images.values()}
    sizes = {}
    for name, file in release.files(lambda name: name if name in names else None, "images"):
        try:
            image = Image.open(file, formats=FORMATS)
        except Exception as error:  # a damaged image can fail in any way
            raise UserError(
                f"{release.where(name)} is not a readable {' or '.join(FORMATS)} image ({error})"
            ) from error
        sizes[name] = image.height, image.width
    return sizes


def write_paths(
    directory: Path,
    splits: Mapping[str, Sequence[tuple[str, str]]],
    classes: Sequence[str],
    sizes: Mapping[str, tuple[int, int]],
    *,
    root: str,
    grey: bool,
) -> Figures:
    """Write the paths of images that stay files.

    Args:
        directory: An empty directory.
        splits: Class folder and path below the root of each image.
        classes: Names of the class folders in the order of the labels.
        sizes: Height and width of each image.
        root: Directory of the files, by itself or below ``directory``.
        grey: Whether all are made grey.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    labels, pixels = {}, {}
    for kind in ("input", "label"):
        (directory / kind).mkdir()
    for split, images in splits.items():
        paths = np.array([name.encode() for _, name in images], dtype=bytes)
        np.save(directory / "input" / f"{split}.npy", paths)
        labels[split] = np.array([numbers[folder] for folder, _ in images], dtype=np.int64)
        pixels[split] = np.array([sizes[name][0] * sizes[name][1] for _, name in images])
    Description(tuple(classes), *(GREY if grey else COLOURS), root).write(directory)
    return write_labels(directory, labels, pixels, classes)


def write_demo(directory: Path, *, seed: int, limit: int | None, grey: bool) -> Figures:
    """Save gratings as JPEG files and list them."""
    files = directory / "files"
    for number, (split, count) in enumerate(DEMO_COUNTS.items()):
        save_standin_files(
            files / split, DEMO_SIZES, images=min(count, limit or count), seed=seed + number
        )
    release = RawRelease(files)
    tree = find_tree(release, ("train", "valid", "test"))
    splits = split_tree(tree, seed)
    classes = tree.classes(files)
    return write_paths(directory, splits, classes, _sizes(release, tree), root="files", grey=grey)
