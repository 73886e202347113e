"""Raw releases read file by file: a directory, a tar archive of any compression, or a zip.

Nothing is unpacked to disk and the kind is told from the content, not from the name. Archive
members that are absolute, climb out of the archive, or are links or devices are refused, as is a
header of more than 1 MiB. What macOS and Windows add is left out. What a small archive may unpack
to is not bounded, so files are read by the functions of :mod:`fairseq_csp.data.files`, which are.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import logging
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from tqdm import tqdm

from fairseq_csp.data.files import open_file
from fairseq_csp.errors import UserError
from preprocess.progress import Lines, progress

_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, struct.error),
    # numbers and names in headers that cannot be; what zipfile says of encrypted members
    *(ValueError, OverflowError, MemoryError, RuntimeError),
)
_BLOCK = 1 << 20
_COMPRESSIONS = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x5d\x00\x00": lzma.open,
}
# what file managers of macOS, Windows, Linux desktops and network drives leave in directories
_ADDED = {
    "__macosx",
    ".ds_store",
    ".appledouble",
    ".spotlight-v100",
    ".trashes",
    ".fseventsd",
    "icon\r",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    ".directory",
    "@eadir",
}

logger = logging.getLogger(__name__)


class NothingFoundError(UserError):
    """A release holds none of the files that a data set is made of."""


class RawRelease:
    """The files of one raw release.

    Args:
        path: A directory or an archive.

    Raises:
        UserError: ``path`` does not exist.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise UserError(f"--raw {path}: there is no such file or directory")
        self.path = path
        self._read: list[Path] = []
        self._added = 0

    def files(
        self, part: Callable[[str], str | None], looked_for: str
    ) -> Iterator[tuple[str, BinaryIO]]:
        """Yield (name, open file) of each file that is a part of the data set.

        Names are relative to the release, with ``/``; directories are walked in sorted order,
        archives in theirs. A file must be read before the next one is asked for.

        Args:
            part: Tells of a name which part of the data set the file is, such as
                ``test/pos/0_10.txt``; None: it is none.
            looked_for: How to call these files where there are none.

        Raises:
            UserError: the archive is damaged, of an unknown kind, or has an unsafe member; two
                files are the same part, so that it is not clear which one is meant.
            NothingFoundError: there are none.
        """
        names: dict[str, str] = {}
        self._added = 0

        def wanted(name: str) -> bool:
            if is_added(name):
                self._added += 1
                return False
            found = part(name)
            if found is None:
                return False
            if found in names:
                other = "twice" if names[found] == name else f"and {names[found]}"
                raise UserError(
                    f"{self.path} holds {name} {other}, of which only one can be meant: remove one"
                )
            names[found] = name
            return True

        with _damage_told(self.path):
            yield from self._files(wanted)
        if self._added:
            logger.info(
                f"{self.path}: {self._added:,} files that macOS or Windows added are left out "
                "(such as ._*, .DS_Store, Thumbs.db)"
            )
        if not names:
            raise NothingFoundError(f"{self.path} holds no {looked_for}")

    def _files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, BinaryIO]]:
        if self.path.is_dir():
            return self._directory_files(wanted)
        with open_file(self.path) as file:
            if zipfile.is_zipfile(file):
                return self._zip_files(wanted)
        return self._tar_files(wanted)

    def where(self, name: str) -> str:
        """Return how a message should call the file ``name`` of this release."""
        return str(self.path / name) if self.path.is_dir() else f"{self.path}: {name}"

    def description(self) -> dict[str, object]:
        """Return the release's name and SHA-256, for the summary.

        The hash is that of the archive; of a directory, that of the names and contents of the
        files that were read, in order.
        """
        if not self.path.is_dir():
            return {"file": self.path.name, "sha256": sha256(self.path)}
        digest = hashlib.sha256()
        for path in progress(self._read, "hashing the raw files", unit=" files"):
            digest.update(f"{path.relative_to(self.path).as_posix()}\0{sha256(path)}\n".encode())
        return {
            "directory": self.path.name,
            "files": len(self._read),
            "sha256": digest.hexdigest(),
        }

    def _directory_files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, BinaryIO]]:
        self._read.clear()
        with progress(what=f"reading {self.path.name}", unit=" files") as shown:
            for folder, subfolders, names in os.walk(self.path):
                subfolders.sort()
                for name in sorted(names):
                    path = Path(folder, name)
                    relative = path.relative_to(self.path).as_posix()
                    if wanted(relative):
                        self._read.append(path)
                        with open_file(path) as file:
                            yield relative, file
                        shown.update()

    def _tar_files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, BinaryIO]]:
        with open(self.path, "rb") as raw, self._progress() as shown:
            start = raw.read(6)
            raw.seek(0)
            unpack = next(
                (_COMPRESSIONS[key] for key in _COMPRESSIONS if start.startswith(key)), None
            )
            source = _TarSource(unpack(raw) if unpack else raw, self.path)
            with tarfile.open(fileobj=source, mode="r:") as archive:
                while (member := source.next_of(archive)) is not None:
                    archive.members.clear()  # millions of members would fill the memory
                    self._check(member.name, member.isfile() or member.isdir())
                    name = PurePosixPath(member.name).as_posix()
                    if member.isfile() and wanted(name):
                        file = _CheckedFile(archive.extractfile(member), self.path)
                        yield name, io.BufferedReader(file, _BLOCK)
                    shown.update(raw.tell() - shown.n)
                # tarfile ends quietly when the next header is not there
                if source.tell() != archive.offset + tarfile.BLOCKSIZE:
                    raise tarfile.ReadError("the end-of-archive mark is missing")
                while source.read(_BLOCK):  # to the checksum of the compression
                    pass

    def _zip_files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, BinaryIO]]:
        with zipfile.ZipFile(self.path) as archive, self._progress() as shown:
            for member in archive.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)
                self._check(member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
                name = PurePosixPath(member.filename).as_posix()
                if not member.is_dir() and wanted(name):
                    with archive.open(member) as member_file:
                        file = _CheckedFile(member_file, self.path)
                        yield name, io.BufferedReader(file, _BLOCK)
                shown.update(member.compress_size)

    def _progress(self) -> tqdm | Lines:
        size = self.path.stat().st_size
        return progress(what=f"reading {self.path.name}", total=size, unit="B", scale=True)

    def _check(self, name: str, plain: bool) -> None:
        if not plain:
            reason = "is a link or a device"
        elif name.startswith("/") or PureWindowsPath(name).drive:
            reason = "has an absolute path"
        elif ".." in PurePosixPath(name.replace("\\", "/")).parts:
            reason = "climbs out of the archive"
        else:
            return
        raise UserError(f"{self.path}: member {name!r} {reason}; the archive is refused")


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (*_DAMAGED, OSError) as error:
        # of the operating system's errors, those that come from a number in the archive
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise UserError(
            f"{path} cannot be read as a tar or zip archive ({error}); "
            "it is cut short or damaged: download it again"
        ) from error


def is_added(name: str) -> bool:
    """Tell whether a file manager added a file, by its name in a release or directory."""
    parts = PurePosixPath(name).parts
    return any(part.startswith("._") or part.lower() in _ADDED for part in parts)


class _TarSource:
    """An uncompressed tar stream in which the headers of a member take at most 1 MiB.

    tarfile reads headers of any size that they claim, and of any number, into memory.
    """

    def __init__(self, file: BinaryIO, archive: Path) -> None:
        self._file = file
        self._archive = archive
        self._left: int | None = _BLOCK  # the first member is read when tarfile opens the stream
        self.tell = file.tell
        self.seek = file.seek

    def read(self, size: int) -> bytes:
        if self._left is not None:
            if not 0 <= size <= self._left:
                raise UserError(
                    f"{self._archive}: a header claims more than {_BLOCK >> 20} MiB, as no "
                    "genuine one does; the archive is refused"
                )
            self._left -= size
        return self._file.read(size)

    def next_of(self, archive: tarfile.TarFile) -> tarfile.TarInfo | None:
        """Return the next member of the archive that is made of this stream."""
        self._left = _BLOCK
        member = archive.next()
        self._left = None
        return member


class _CheckedFile(io.RawIOBase):
    """An archive member whose reader is told of damage in the same words."""

    def __init__(self, file: BinaryIO, archive: Path) -> None:
        self._file = file
        self._archive = archive

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        with _damage_told(self._archive):
            return self._file.readinto(buffer)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
