"""Turn a published directory of text images (`.src`, `.label`) into the binary form.

    python -m preprocess convert lra_data/path-x

writes `input/*.npy` and `label/*.npy` beside the text files. Values (0-255), equal widths and as
many labels as images are checked. Training then reads the binary files, and the text files may be
deleted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from fairseq_csp.data.pixels import read_label_lines, read_pixel_lines
from fairseq_csp.data.summary import SUMMARY_FILE
from fairseq_csp.datasets import DATASETS
from fairseq_csp.errors import UserError
from preprocess.archives import sha256
from preprocess.directories import temporary_directory
from preprocess.image_format import ImageDatasetWriter
from preprocess.progress import progress
from preprocess.summary import SPLITS, Figures, format_table, write_summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("directory", type=Path, help="the published set")
    parser.add_argument("--overwrite", action="store_true", help="replace existing .npy files")


def run(arguments: argparse.Namespace) -> None:
    """Convert one directory in place, all splits or none."""
    directory = arguments.directory
    made = [Path(kind, f"{split}.npy") for kind in ("label", "input") for split in SPLITS]
    there = [path for path in made if (directory / path).exists()]
    if there and not arguments.overwrite:
        raise UserError(
            f"{directory / there[0]} already exists and is left as it is; add --overwrite to "
            "replace it"
        )
    texts = [
        directory / kind / f"{split}{suffix}"
        for kind, suffix in (("input", ".src"), ("label", ".label"))
        for split in SPLITS
    ]
    for path in texts:
        if not path.is_file():
            raise UserError(f"{path} is missing: {directory} is not a published image directory")

    with temporary_directory(directory / "converted") as temporary:
        figures = _convert(directory, temporary)
        data_set = DATASETS.get(directory.resolve().name)
        write_summary(
            temporary,
            directory.resolve().name,
            figures,
            limited=data_set is not None and figures.counts != data_set.counts,
            source={str(path.relative_to(directory)): sha256(path) for path in texts},
            options={},
        )
        for path in (*made, Path(SUMMARY_FILE)):
            (temporary / path).replace(directory / path)
    sys.stdout.write(f"converted {directory}\n{format_table(figures)}")


def _convert(directory: Path, target: Path) -> Figures:
    first = next(read_pixel_lines(directory / "input" / "train.src"), None)
    if first is None:
        raise UserError(f"{directory / 'input' / 'train.src'} holds no images")
    with ImageDatasetWriter(target, pixels=len(first)) as writer:
        for split in SPLITS:
            source = directory / "input" / f"{split}.src"
            labels = list(read_label_lines(directory / "label" / f"{split}.label"))
            lines = progress(read_pixel_lines(source), source.name, unit=" images")
            images = 0
            for images, line in enumerate(lines, start=1):
                if len(line) != len(first):
                    raise UserError(f"{source} has images of another width than train.src")
                if images <= len(labels):  # else only count on, for the message below
                    writer.add(split, np.frombuffer(line, np.uint8), labels[images - 1 : images])
            if images != len(labels):
                raise UserError(f"{source} has {images:,} images, but {len(labels):,} labels")
        return writer.finish()
