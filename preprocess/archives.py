"""Raw releases read file by file: a directory, a tar archive of any compression, or a zip.

Nothing is unpacked to disk and the kind is told from the content, not from the name. Archive
members that are absolute, climb out of the archive, or are links or devices are refused. What a
small archive may unpack to is not bounded, so files are read by :func:`read_whole` and
:func:`numbered_lines`, which are.
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
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

from fairseq_csp.errors import UserError

_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, struct.error),
    # numbers and names in headers that cannot be; what zipfile says of encrypted members
    *(ValueError, OverflowError, MemoryError, RuntimeError),
)
_BLOCK = 1 << 20
_LARGEST = 64 << 20


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

    def files(
        self, wanted: Callable[[str], bool], looked_for: str
    ) -> Iterator[tuple[str, BinaryIO]]:
        """Yield (name, open file) of each file whose name ``wanted`` accepts.

        Names are relative to the release, with ``/``; directories are walked in sorted order,
        archives in theirs. A file must be read before the next one is asked for.

        Args:
            wanted: Accepts or refuses a name.
            looked_for: How to call these files where there are none.

        Raises:
            UserError: the archive is damaged, of an unknown kind, or has an unsafe member.
            NothingFoundError: there are none.
        """
        empty = True
        with _damage_told(self.path):
            for item in self._files(wanted):
                empty = False
                yield item
        if empty:
            raise NothingFoundError(f"{self.path} holds no {looked_for}")

    def _files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, BinaryIO]]:
        if self.path.is_dir():
            return self._directory_files(wanted)
        if zipfile.is_zipfile(self.path):
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
        for path in tqdm(self._read, "hashing the raw files", unit=" files", leave=False):
            digest.update(f"{path.relative_to(self.path).as_posix()}\0{sha256(path)}\n".encode())
        return {
            "directory": self.path.name,
            "files": len(self._read),
            "sha256": digest.hexdigest(),
        }

    def _directory_files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, BinaryIO]]:
        self._read.clear()
        with tqdm(desc=f"reading {self.path.name}", unit=" files", leave=False) as progress:
            for folder, subfolders, names in os.walk(self.path):
                subfolders.sort()
                for name in sorted(names):
                    path = Path(folder, name)
                    relative = path.relative_to(self.path).as_posix()
                    if wanted(relative):
                        self._read.append(path)
                        with open(path, "rb") as file:
                            yield relative, file
                        progress.update()

    def _tar_files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, BinaryIO]]:
        with (
            open(self.path, "rb") as raw,
            tarfile.open(fileobj=raw, mode="r:*") as archive,
            self._progress() as progress,
        ):
            while (member := archive.next()) is not None:
                archive.members.clear()  # millions of members would fill the memory
                self._check(member.name, member.isfile() or member.isdir())
                if member.isfile() and wanted(member.name.removeprefix("./")):
                    file = _CheckedFile(archive.extractfile(member), self.path)
                    yield member.name.removeprefix("./"), io.BufferedReader(file, _BLOCK)
                progress.update(raw.tell() - progress.n)
            # tarfile ends quietly when the next header is not there
            if archive.fileobj.tell() != archive.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("the end-of-archive mark is missing")
            while archive.fileobj.read(_BLOCK):  # to the checksum of the compression
                pass

    def _zip_files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, BinaryIO]]:
        with zipfile.ZipFile(self.path) as archive, self._progress() as progress:
            for member in archive.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)
                self._check(member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
                if not member.is_dir() and wanted(member.filename.removeprefix("./")):
                    with archive.open(member) as member_file:
                        file = _CheckedFile(member_file, self.path)
                        yield member.filename.removeprefix("./"), io.BufferedReader(file, _BLOCK)
                progress.update(member.compress_size)

    def _progress(self) -> tqdm:
        return tqdm(
            desc=f"reading {self.path.name}",
            total=self.path.stat().st_size,
            unit="B",
            unit_scale=True,
            leave=False,
        )

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


def read_whole(file: BinaryIO, where: str) -> bytes:
    """Return the content of a file.

    Raises:
        UserError: it is larger than 64 MiB, as no file that is read whole should be.
    """
    content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise UserError(
            f"{where} is larger than {_LARGEST >> 20} MiB; it is damaged or not genuine"
        )
    return content


def numbered_lines(file: BinaryIO, where: str) -> Iterator[tuple[int, bytes]]:
    """Yield the number, from 1, and the bytes of each line.

    Raises:
        UserError: a line is longer than 64 MiB.
    """
    for number in itertools.count(1):
        line = file.readline(_LARGEST + 1)
        if not line:
            return
        if len(line) > _LARGEST:
            raise UserError(f"{where}, line {number}: it is longer than {_LARGEST >> 20} MiB")
        yield number, line


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
