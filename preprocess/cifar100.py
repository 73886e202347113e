"""CIFAR-100 in colours: photographs of 32 x 32 pixels, a hundred fine classes.

    python -m preprocess cifar100 --raw cifar-100-python.tar.gz   45,000/5,000/10,000 images
    python -m preprocess cifar100 --demo                          small synthetic gratings

The raw release is the archive of the pickled files train, test and meta, the directory that unpacks
from it, or PNG files `{train,test}/CLASS/*.png` (classes in alphabetical order). Writes
`input/*.npy`, `label/*.npy` and `images.json` with class names, mean and deviation of each channel.

A tenth of the training images, chosen by `--seed`, becomes the validation split. The twenty coarse
classes of the release are not used.
"""

from __future__ import annotations

import argparse
import re
from functools import partial

from fairseq_csp.datasets import IMAGE_SETS
from preprocess import cifar
from preprocess.image_sets import prepare_images
from preprocess.preparation import add_common_arguments

DATA_SET = IMAGE_SETS["cifar100"]
BATCHES = cifar.Batches(
    pattern=re.compile(r"(?:^|/)(?:train|(test))$"),
    meta="meta",
    labels="fine_labels",
    names="fine_label_names",
    classes=DATA_SET.classes,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this data set."""
    add_common_arguments(parser, DATA_SET)


def run(arguments: argparse.Namespace) -> None:
    """Prepare the set from its raw release, or make the stand-in."""
    prepare_images(DATA_SET, arguments, partial(cifar.convert, BATCHES), cifar.SHAPE)
