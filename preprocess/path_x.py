"""Path-X: Pathfinder at 128 x 128 pixels.

    python -m preprocess path-x --generate              generate 160,000/20,000/20,000 images
    python -m preprocess path-x --raw lra_release.gz    read the release (archive or directory)
    python -m preprocess path-x --preview sheet.png     only draw 200 images to look at
    python -m preprocess path-x --demo                  a small set of 64 x 64 pixels

Everything else is as `python -m preprocess pathfinder --help` says, with `pathfinder128` instead
of `pathfinder32`. The release has that folder twice; the right one, which is read, is
`lra_release/lra_release/pathfinder128`. The geometry of generated images, that of Pathfinder
scaled up, is this project's choice.
"""

from __future__ import annotations

import argparse

from fairseq_csp.datasets import DATASETS
from preprocess import pathfinder
from preprocess.pathfinder import Variant
from preprocess.pathfinder_generator import Settings

PATH_X = Variant(
    DATASETS["path-x"],
    "pathfinder128",
    Settings(
        side=128,
        paddle_length=5,
        thickness=1.5,
        margin=3,
        start_distance=20,
        marker_radius=3,
    ),
    demo=Settings(
        side=64,
        paddles=10,
        paddle_length=3,
        thickness=1,
        margin=1.5,
        start_distance=11,
        marker_radius=2,
        distractors=3,
        easy=True,
    ),
    demo_counts={"train": 1000, "valid": 200, "test": 200},
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this data set."""
    pathfinder.add_arguments(parser, PATH_X)


def run(arguments: argparse.Namespace) -> None:
    """Prepare the set from its raw release, or generate it, or draw a preview."""
    pathfinder.run(arguments, PATH_X)
