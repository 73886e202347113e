"""CIFAR-10 in colours: photographs of 32 x 32 pixels, ten classes, for image classification.

    python -m preprocess cifar10-rgb --raw cifar-10-python.tar.gz   45,000/5,000/10,000 images
    python -m preprocess cifar10-rgb --demo                         small synthetic gratings

The raw release is that of `cifar10`: the archive of pickled batches, the directory that unpacks
from it, or PNG files `{train,test}/CLASS/*.png` (classes in alphabetical order). Writes
`input/*.npy`, `label/*.npy` and `images.json` with class names, mean and deviation of each channel.

A tenth of the training images, chosen by `--seed`, becomes the validation split: the same images
as in `cifar10`.
"""

from __future__ import annotations

import argparse
import re
from functools import partial

from fairseq_csp.datasets import IMAGE_SETS
from preprocess import cifar
from preprocess.image_sets import prepare_images
from preprocess.preparation import add_common_arguments

DATA_SET = IMAGE_SETS["cifar10-rgb"]
BATCHES = cifar.Batches(
    pattern=re.compile(r"(?:^|/)(?:data_batch_[1-5]|(test)_batch)$"),
    meta="batches.meta",
    labels="labels",
    names="label_names",
    classes=DATA_SET.classes,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this data set."""
    add_common_arguments(parser, DATA_SET)


def run(arguments: argparse.Namespace) -> None:
    """Prepare the set from its raw release, or make the stand-in."""
    prepare_images(DATA_SET, arguments, partial(cifar.convert, BATCHES), cifar.SHAPE)
