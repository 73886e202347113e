"""Reading files that others wrote: they may be damaged, endless or no files at all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fairseq_csp.errors import UserError

LARGEST = 64 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def open_file(path: Path | str) -> BinaryIO:
    """Open a file for reading; a pipe, which would be waited for, or a device is refused.

    Raises:
        UserError: there is something else than a file.
        OSError: there is nothing, or it may not be read.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a directory" if path.is_dir() else "a pipe or a device"
        raise UserError(f"{path} is {kind}, where a file is expected")
    return path.open("rb")


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
