"""Where the raw release of a data set lies."""

from __future__ import annotations

import os
from pathlib import Path

from fairseq_csp.datasets import DATA_DIRECTORY, DataSet
from fairseq_csp.errors import UserError

RAW_DIRECTORY = DATA_DIRECTORY / "raw"


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


def require_raw(data_set: DataSet, directory: Path = RAW_DIRECTORY) -> Path:
    """Return the raw release like :func:`find_raw`.

    Raises:
        UserError: it is not there; the message says what to download and what to run.
    """
    raw = find_raw(data_set, directory)
    if raw is None:
        name, download = data_set.name, data_set.download
        if download is None:
            raise UserError(f"{name} needs its raw files: name the place with --raw PATH")
        raise UserError(
            f"{name} needs the raw file {download.file} ({download.size}): "
            f"`python -m preprocess download {name}` downloads it from {download.address} into "
            f"{directory}/; where it lies elsewhere, `python -m preprocess {name} --raw PATH`"
        )
    return raw
