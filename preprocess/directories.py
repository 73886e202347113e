"""A result directory that appears complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fairseq_csp.errors import UserError


@contextmanager
def new_directory(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty directory beside ``target`` that takes its name when the block succeeds.

    When the block fails or is interrupted the directory is removed and an older ``target`` is
    left as it was.

    Raises:
        UserError: ``target`` exists and ``overwrite`` is false.
    """
    if target.exists() and not overwrite:
        raise UserError(
            f"{target} already exists and is left as it is; add --overwrite to replace it, "
            "or choose another directory with --out"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    previous = target.parent / f".{target.name}.previous-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        if target.exists():
            target.rename(previous)
        try:
            partial.rename(target)
        except OSError:
            if previous.exists():
                previous.rename(target)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if previous.exists():
        shutil.rmtree(previous)
