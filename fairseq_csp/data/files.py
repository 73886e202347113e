"""Reading files that others wrote: they may be damaged, endless or no files at all."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fairseq_csp.errors import UserError

LARGEST = 64 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def require_file(path: Path | str) -> None:
    """Check that what is at a path is a file: a pipe would be waited for.

    Raises:
        UserError: it is something else; that there is nothing is no matter here.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a directory" if path.is_dir() else "a pipe or a device"
        raise UserError(f"{path} is {kind}, where a file is expected")


def open_file(path: Path | str) -> BinaryIO:
    """Open a file for reading.

    Raises:
        UserError: there is something else than a file.
        OSError: there is nothing, or it may not be read.
    """
    require_file(path)
    return open(path, "rb")


class PieceReader:
    """Reads pieces of a file that stays open.

    A memory map would end the process (SIGBUS) where the file is cut short meanwhile; here that is
    told in a sentence. Processes share the pages that were read either way.

    Args:
        path: the file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self._file = open_file(path)

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``.

        Raises:
            UserError: the file has fewer.
        """
        content = os.pread(self._file.fileno(), size, offset)
        while len(content) < size:  # one call reads 2 GiB at most
            piece = os.pread(self._file.fileno(), size - len(content), offset + len(content))
            if not piece:
                raise UserError(
                    f"{self.path} became shorter while it was in use: prepare the data anew"
                )
            content += piece
        return content

    def __getstate__(self) -> str:
        return self.path

    def __setstate__(self, path: str) -> None:
        self.__init__(path)


def read_whole(file: BinaryIO, where: str, largest: int = LARGEST) -> bytes:
    """Return the content of a file.

    Args:
        file: the open file.
        where: how to call it in a message.
        largest: bytes that no genuine file of its kind exceeds.

    Raises:
        UserError: it is larger.
    """
    content = file.read(largest + 1)
    if len(content) > largest:
        raise UserError(
            f"{where} is larger than {largest / (1 << 20):g} MiB, as no such file should be; it is "
            "damaged or not genuine"
        )
    return content


def numbered_lines(file: BinaryIO, where: str) -> Iterator[tuple[int, bytes]]:
    """Yield the number, from 1, and the bytes of each line, without its end.

    What editors add is left out: a byte-order mark, CR before LF, blank lines at the end.

    Args:
        file: the open file.
        where: how to call it in a message.

    Raises:
        UserError: a line is longer than 64 MiB.
    """
    blank: list[tuple[int, bytes]] = []
    for number in itertools.count(1):
        line = file.readline(LARGEST + 1)
        if not line:
            return
        if len(line) > LARGEST:
            raise UserError(f"{where}, line {number}: it is longer than {LARGEST >> 20} MiB")
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if not line.strip():
            blank = blank or [(number, line)]  # the first is enough to complain of
            continue
        yield from blank
        blank = []
        yield number, line
