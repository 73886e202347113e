"""Where the raw release of a data set lies."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fairseq_csp.datasets import RAW_DIRECTORY, DataSet
from fairseq_csp.errors import UserError
from preprocess.download import fetch


def find_raw(data_set: DataSet, directory: Path = RAW_DIRECTORY) -> Path | None:
    """Return the raw release where it lies in ``directory``, else None.

    The directory that unpacks from it does as well.
    """
    if data_set.download is None:
        return None
    candidates = (directory / data_set.download.file, directory / data_set.download.unpacked)
    return next((path for path in candidates if path.exists()), None)


def raw_at(data_set: DataSet, path: str) -> Path:
    """Return the raw release that ``--raw`` names: ``path``, or the archive in it."""
    archive = os.path.join(path, data_set.download.file if data_set.download else "")
    return Path(archive if os.path.isfile(archive) else path)


def require_raw(data_set: DataSet, arguments: argparse.Namespace) -> Path:
    """Return the raw release: what ``--raw`` names, what lies in its place, or a download.

    Raises:
        UserError: it is not there; the message says what to run.
    """
    raw = arguments.raw or find_raw(data_set)
    if raw is not None:
        return raw
    name, release = data_set.name, data_set.download
    if release is None:
        raise UserError(f"{name} needs its raw files: name the place with --raw PATH")
    if arguments.download:
        return fetch(release, release.address, RAW_DIRECTORY)
    raise UserError(
        f"{name} needs the raw file {release.file} ({release.size}): "
        f"`python -m preprocess {name} --download` gets it from {release.address} into "
        f"{RAW_DIRECTORY}/ first; where it lies elsewhere, `python -m preprocess {name} --raw PATH`"
    )
