"""A result directory that appears complete or not at all, and replaces nothing but a data set."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fairseq_csp.data.summary import SUMMARY_FILE, read_summary
from fairseq_csp.errors import UserError
from preprocess.archives import is_added
from preprocess.summary import SPLITS
from preprocess.tokenizers import SENTENCEPIECE_FILE

_TEXT = {
    "dict.txt",
    "preprocess.log",  # of fairseq-preprocess
    *(f"{split}{ending}" for split in SPLITS for ending in (".bin", ".idx")),
}
_LAYOUT = {name: _TEXT for name in ("src-bin", "src1-bin", "dict-bin", "label-bin")} | {
    "input": {f"{split}{ending}" for split in SPLITS for ending in (".src", ".npy")},
    "label": {f"{split}{ending}" for split in SPLITS for ending in (".label", ".npy")},
}
# what a set consists of that was published, or prepared before its summary listed its files
PUBLISHED = {f"{folder}/{name}" for folder, names in _LAYOUT.items() for name in names}


@contextmanager
def new_directory(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty directory beside ``target`` that takes its name when the block succeeds.

    When the block fails, or this process ends in whatever way, the directory is removed and an
    older ``target`` is left as it was.

    Raises:
        UserError: ``target`` exists and ``overwrite`` is false, or is no data set, or another
            process prepares it, or it appeared or changed meanwhile.
    """
    with temporary_directory(target) as partial:
        if overwrite:
            _check_replaceable(target)
        elif os.path.lexists(target):
            raise UserError(
                f"{target} already exists and is left as it is; add --overwrite to replace it, "
                "or choose another directory with --out"
            )
        before = _identity(target)
        yield partial
        if _identity(target) != before:
            raise UserError(
                f"{target} appeared or changed while it was being prepared and is left as it is; "
                "choose another directory with --out"
            )
        if before is None:
            partial.rename(target)
            return
        with _signals_ignored():
            previous = _beside(target, "previous")
            target.rename(previous)
            try:
                partial.rename(target)
            except OSError:
                previous.rename(target)
                raise
            shutil.rmtree(previous)


def _beside(target: Path, what: str) -> Path:
    return target.parent / f".{target.name}.{what}-{os.getpid()}"


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a directory from others of the same name; None where there is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _check_replaceable(target: Path) -> None:
    """Check that there is nothing to lose at ``target`` but a data set.

    Raises:
        UserError: there is something else.
    """
    if not os.path.lexists(target):
        return
    if target.is_symlink():
        reason = "a link: name the directory that it leads to"
    elif not target.is_dir():
        reason = "no directory"
    elif foreign := _foreign(target):
        reason = f"no prepared data set: {foreign}"
    else:
        return
    raise UserError(f"{target} is {reason}; --overwrite replaces prepared data sets only")


def _foreign(directory: Path) -> str | None:
    """Return why a directory is no data set, or has more in it than one; None where it is one."""
    known = set(PUBLISHED)
    summary = read_summary(directory) or {}
    if {"name", "splits", "source"} <= set(summary):
        known |= {SUMMARY_FILE, SENTENCEPIECE_FILE, *summary.get("files", ())}
    folders = {parent.as_posix() for name in known for parent in PurePosixPath(name).parents}
    content = [path for path in sorted(directory.rglob("*")) if not is_added(str(path))]
    for path in content:
        name = path.relative_to(directory).as_posix()
        if name not in (folders if path.is_dir() and not path.is_symlink() else known):
            return f"{name} is in it"
    if content and not any(path.is_file() for path in content):
        return "there is no file in it"
    return None


@contextmanager
def temporary_directory(target: Path) -> Iterator[Path]:
    """Yield a new directory beside ``target``, which is gone afterwards unless it was renamed.

    It is locked against other processes that make one for the same target, and removed although
    this process is killed.

    Raises:
        UserError: another process has one for this target.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(target, "partial")
    # outlives this process, however that ends, and all of its group
    remover = subprocess.Popen(
        ["/bin/sh", "-c", 'read -r done || rm -rf -- "$1"', "sh", str(partial.absolute())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    lock = None
    try:
        with _locked(target.parent):
            _recover(target)
            lock = _made_and_locked(partial)
        yield partial
    finally:
        with _signals_ignored():
            if lock is not None:
                shutil.rmtree(partial, ignore_errors=True)
                os.close(lock)
            remover.communicate(b"done\n")


def _made_and_locked(directory: Path) -> int:
    directory.mkdir()
    lock = os.open(directory, os.O_RDONLY)
    _try_lock(lock)
    return lock


def _recover(target: Path) -> None:
    """Undo what a preparation of ``target`` left when the machine went down.

    Raises:
        UserError: another process is preparing it.
    """
    found = [path for path in target.parent.iterdir() if path.name.startswith(f".{target.name}.")]
    for other in [path for path in found if path.name.startswith(f".{target.name}.partial-")]:
        descriptor = os.open(other, os.O_RDONLY)
        try:
            free = _try_lock(descriptor)
        finally:
            os.close(descriptor)
        if free is False:
            raise UserError(f"another process is preparing {target}: wait for it, or end it")
        if free:
            shutil.rmtree(other)
    for other in [path for path in found if path.name.startswith(f".{target.name}.previous-")]:
        if os.path.lexists(target):
            shutil.rmtree(other)
        else:
            other.rename(target)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not all file systems can
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool | None:
    """Lock a directory; False: another process has, None: this file system cannot tell."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def _signals_ignored() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
