"""Files written whole or not at all, and read where they are files."""

import contextlib
import math
import os
import stat

from fairseq_csp.errors import UserError

# ends the name of a file that is being written
PARTIAL = ".tmp"


def write_whole(path: str, content: bytes | memoryview) -> None:
    """Write a file so that at every moment all of the old or all of the new one is there.

    Args:
        path: where; ``path + PARTIAL`` is written first.
        content: all of it.

    Raises:
        UserError: it cannot be written; what was there is as it was.
    """
    temporary = path + PARTIAL
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise UserError(
            f"{path} could not be written ({error.strerror}); the checkpoints before it are whole: "
            f"make room for {math.ceil(len(content) / 2**20):,} MiB, then the same command "
            "goes on from the last one"
        ) from error


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a regular file of UTF-8; a pipe would be waited for.

    Args:
        path: where.

    Raises:
        UserError: it cannot be read, is no regular file, or not UTF-8.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path} is no regular file: move it away")
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: it is damaged, or of another program") from error


def write_text(path: str | os.PathLike[str], text: str, add: bool = False) -> None:
    """Write a small file, or add to one.

    Args:
        path: where.
        text: what.
        add: behind what is there.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with open(path, "a" if add else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror}): make room") from error
