"""Compare prepared sets with the SHA-256 of each file that their preparation wrote down.

    python -m preprocess verify lra_data/imdb-4000

reads every file once. A set that was published, or prepared before this was written down, cannot
be compared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fairseq_csp.data.summary import SUMMARY_FILE, read_summary
from fairseq_csp.errors import UserError
from preprocess.archives import sha256
from preprocess.progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "directory", type=Path, nargs="+", help="a prepared set, such as lra_data/imdb-4000"
    )


def run(arguments: argparse.Namespace) -> None:
    """Compare the sets one after the other.

    Raises:
        UserError: a file of a set is missing or another than its preparation wrote, or nothing
            tells what it wrote.
    """
    for directory in arguments.directory:
        files = recorded_files(directory)
        for name, expected in progress(files.items(), f"reading {directory}", unit=" files"):
            path = directory / name
            if not path.is_file():
                raise UserError(f"{path} is missing: prepare {directory} anew")
            if sha256(path) != expected:
                raise UserError(
                    f"{path} is not what was prepared (its SHA-256 differs from that in "
                    f"{SUMMARY_FILE}): prepare {directory} anew"
                )
        sys.stdout.write(f"{directory}: {len(files)} files are as they were prepared\n")


def recorded_files(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by its name in the set.

    Raises:
        UserError: the directory's summary does not tell them.
    """
    files = (read_summary(directory) or {}).get("files")
    if not isinstance(files, dict) or not files:
        raise UserError(
            f"{directory / SUMMARY_FILE} tells no SHA-256: the set was published, or prepared "
            "before they were written down"
        )
    for name, value in files.items():
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        if not inside or not isinstance(value, str):
            raise UserError(f"{directory / SUMMARY_FILE} is damaged: {name!r} is no file of a set")
    return files
