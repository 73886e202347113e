"""Tiny-ImageNet: photographs of 64 x 64 pixels, 200 classes.

    python -m preprocess tiny-imagenet --raw tiny-imagenet-200.zip   90,000/10,000/10,000 images
    python -m preprocess tiny-imagenet --demo                        small synthetic gratings

The raw release is the archive or the directory that unpacks from it (`train/CLASS/images/*.JPEG`,
`val/images/*.JPEG` with `val/val_annotations.txt`), or JPEG files `{train,val}/CLASS/*.JPEG`. Some
images are grey; their three channels are made alike. Writes `input/*.npy`, `label/*.npy` and
`images.json`.

As the labels of its test images were never published, `val` is the test split, and a tenth of the
training images, chosen by `--seed`, becomes the validation split.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_csp.datasets import IMAGE_SETS
from preprocess.archives import RawRelease
from preprocess.image_sets import check_classes, find_tree, prepare_images, split_tree, write_tree
from preprocess.preparation import add_common_arguments
from preprocess.summary import Figures

DATA_SET = IMAGE_SETS["tiny-imagenet"]
SHAPE = (64, 64, 3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this data set."""
    add_common_arguments(parser, DATA_SET)


def run(arguments: argparse.Namespace) -> None:
    """Prepare the set from its raw release, or make the stand-in."""
    prepare_images(DATA_SET, arguments, convert, SHAPE)


def convert(
    release: RawRelease, directory: Path, *, seed: int, limit: int | None, workers: int
) -> Figures:
    """Decode all images of a release and hold out the validation split.

    Raises:
        UserError: there are none, one is damaged, or class folders are missing.
    """
    tree = find_tree(release, ("train", "valid"))
    classes = tree.classes(release.path)
    check_classes(classes, DATA_SET.classes, release, limited=limit is not None)
    splits = split_tree(tree, seed, limit)
    return write_tree(release, directory, splits, classes, SHAPE, workers=workers)
