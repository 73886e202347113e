"""One training at a time writes into a ``--save-dir``, and one that cannot be written is named.

fairseq lets two trainings write over each other, and ends in a traceback where the directory cannot
be made.
"""

import fcntl
import os

from fairseq import checkpoint_utils

from fairseq_csp.errors import UserError
from fairseq_csp.fairseq_patches import replaces

# descriptors that hold a lock while this process lives, by directory
_held: dict[str, int] = {}


@replaces(checkpoint_utils, "verify_checkpoint_directory")
def reserve(save_dir: str) -> None:
    """Make the directory, and keep other trainings out of it until this process ends.

    Args:
        save_dir: where checkpoints are to be written.

    Raises:
        UserError: it cannot be made or written, or another process trains in it.
    """
    try:
        os.makedirs(save_dir, exist_ok=True)
        if not os.access(save_dir, os.W_OK | os.X_OK):
            raise PermissionError(0, "Permission denied")
        directory = os.open(save_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(
            f"--save-dir {save_dir} cannot be made or written ({error.strerror}): name another "
            "place"
        ) from error
    if os.path.realpath(save_dir) in _held:
        os.close(directory)
        return
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(directory)
        raise UserError(
            f"another process trains in {save_dir}: wait for it, end it, or give another --save-dir"
        ) from None
    except OSError:
        # a file system without locks
        os.close(directory)
        return
    _held[os.path.realpath(save_dir)] = directory


def _release_in_child() -> None:
    """Let no worker process keep the lock when the training has been killed."""
    for directory in _held.values():
        os.close(directory)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)
