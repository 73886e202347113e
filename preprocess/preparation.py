"""What the preparation of every data set shares: its options, and how it ends."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from fairseq_csp.datasets import DataSet
from fairseq_csp.errors import UserError
from fairseq_csp.flags import positive
from preprocess.directories import new_directory
from preprocess.sources import raw_at
from preprocess.summary import Figures, check_counts, format_table, write_summary

MOST_WORKERS = 256

logger = logging.getLogger(__name__)


def add_common_arguments(parser: argparse.ArgumentParser, data_set: DataSet) -> None:
    """Add the options that every data set has."""
    parser.add_argument(
        "--raw",
        type=partial(raw_at, data_set),
        metavar="PATH",
        help="the raw release: archive as downloaded, directory that holds it, or unpacked "
        "directory"
        + (f" (default: {data_set.download.file} in lra_data/raw/)" if data_set.download else ""),
    )
    if data_set.download is not None and not data_set.generated:
        parser.add_argument(
            "--download",
            action="store_true",
            help="download the raw file where it is not there yet, as `python -m preprocess "
            f"download {data_set.name}` does",
        )
    parser.add_argument(
        "--demo",
        action="store_true",
        help=f"make a small synthetic stand-in instead, in {data_set.demo_directory}",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"the result (default: {data_set.directory})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing result")
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="keep at most N examples of each split"
    )
    add_seed_and_workers(parser)


def add_seed_and_workers(parser: argparse.ArgumentParser) -> None:
    """Add what every preparation has that may draw numbers and use several processes."""
    parser.add_argument(
        "--seed", type=partial(_whole_number, 0, 2**32 - 1), default=42, help="default: %(default)s"
    )
    parser.add_argument(
        "--workers",
        type=partial(_whole_number, 1, MOST_WORKERS),
        default=min(os.cpu_count() or 1, MOST_WORKERS),
        metavar="N",
        help="processes; the result does not depend on it (default: all cores, here %(default)s)",
    )


def _whole_number(least: int, most: int, text: str) -> int:
    """Read a whole number of an option; a ``type`` for argparse.

    Raises:
        ArgumentTypeError: it is something else, or beyond the bounds.
    """
    if not text.isdecimal() or len(text) > 19 or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from {least:,} to {most:,}")
    return int(text)


def prepare(
    data_set: DataSet,
    arguments: argparse.Namespace,
    fill: Callable[[Path], Figures],
    *,
    expected: Mapping[str, int],
    full: Mapping[str, int] | None = None,
    source: Callable[[], Mapping[str, object]],
    options: Mapping[str, object],
    changed: bool = False,
) -> None:
    """Write one set as a whole: fill a new directory, check it, sum it up, print the table.

    Args:
        data_set: Which one.
        arguments: The common options.
        fill: Writes the files into an empty directory and returns the figures.
        expected: Examples that each split must have; not checked under ``--limit``.
        full: Examples of the full set (default: the table's); others make the set limited.
        source: Called after ``fill``; tells where the data came from, for the summary.
        options: The options that shaped the set, for the summary.
        changed: Whether they make other examples than the full set's, however many.

    Raises:
        UserError: the target exists without ``--overwrite``, or a count is wrong.
    """
    target = arguments.out or (data_set.demo_directory if arguments.demo else data_set.directory)
    with new_directory(target, overwrite=arguments.overwrite) as directory:
        figures = fill(directory)
        for split, value in figures.splits.items():
            if not value.examples:
                raise UserError(f"{data_set.name}: found no example for the {split} split")
        if arguments.limit is None:
            check_counts(data_set.name, figures, expected)
        write_summary(
            directory,
            data_set.name,
            figures,
            limited=changed or _is_limited(arguments, figures, full or data_set.counts),
            source=source(),
            options=options,
        )
    sys.stdout.write(f"{data_set.name}: wrote {target}\n{format_table(figures)}")


def _is_limited(arguments: argparse.Namespace, figures: Figures, full: Mapping[str, int]) -> bool:
    if not full:
        # a set of any size
        return arguments.demo or arguments.limit is not None
    return figures.counts != full


def standin_source(
    data_set: DataSet, arguments: argparse.Namespace, what: str
) -> Callable[[], Mapping[str, object]]:
    """Log that ``--demo`` makes a stand-in, and return the source for :func:`prepare`."""
    logger.info("%s: a synthetic stand-in, not the real data: %s", data_set.name, what)
    return lambda: {"generator": f"{data_set.name} stand-in", "seed": arguments.seed}
