"""Prepare everything that one release of the Long Range Arena holds.

    python -m preprocess all --raw lra_release.gz

prepares those of listops, aan, pathfinder and path-x that the release (archive or directory)
holds, into `lra_data/NAME`, each as its own command does; the other two sets have raw files of
their own. An archive is read once for each, and nothing of it is unpacked. Sets that are there
already are left as they are unless `--overwrite` is given.
"""

from __future__ import annotations

import argparse
import logging
from importlib import import_module
from pathlib import Path
from types import ModuleType

from fairseq_csp.datasets import DATA_DIRECTORY, DATASETS, LRA_RELEASE
from fairseq_csp.errors import UserError
from fairseq_csp.flags import positive
from preprocess.archives import NothingFoundError
from preprocess.preparation import add_seed_and_workers

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--raw", type=Path, metavar="PATH", required=True, help="the release")
    parser.add_argument(
        "--out",
        type=Path,
        default=DATA_DIRECTORY,
        metavar="DIR",
        help="where the sets go, each by its name (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing sets")
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="keep at most N examples of each split"
    )
    add_seed_and_workers(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prepare each set that the release holds."""
    found = False
    sets = {name: entry for name, entry in DATASETS.items() if entry.download == LRA_RELEASE}
    for name, data_set in sets.items():
        module = import_module(data_set.module)
        target = arguments.out / name
        if target.exists() and not arguments.overwrite:
            logger.info("%s: %s is there already and left as it is", name, target)
            found = True
            continue
        try:
            module.run(_arguments_of(module, arguments.out / name, arguments))
            found = True
        except NothingFoundError as error:
            logger.info("%s: %s", name, error)
    if not found:
        raise UserError(
            f"{arguments.raw} holds none of {', '.join(sets)}; expected {LRA_RELEASE.file} from "
            f"{LRA_RELEASE.address}"
        )


def _arguments_of(
    module: ModuleType, target: Path, arguments: argparse.Namespace
) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    options = ["--raw", str(arguments.raw), "--out", str(target)]
    options += ["--seed", str(arguments.seed), "--workers", str(arguments.workers)]
    if arguments.limit is not None:
        options += ["--limit", str(arguments.limit)]
    if arguments.overwrite:
        options.append("--overwrite")
    return parser.parse_args(options)
