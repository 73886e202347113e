"""Writing files so that a kill or a full disk leaves no half of one."""

import contextlib
import math
import os

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
