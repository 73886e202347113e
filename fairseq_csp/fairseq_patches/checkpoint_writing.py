"""Checkpoints are written whole or not at all.

Of the files of one save fairseq writes the first under a temporary name and copies it onto the
others in place, so that a kill leaves half a ``checkpoint_last.pt``. When writing fails it tries
twice more, behind what it has written, and hides the reason.
"""

import io
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from fairseq_csp.fairseq_patches import replaces
from fairseq_csp.files import write_whole


@replaces(checkpoint_utils, "torch_persistent_save")
def save(state: dict, path: str, async_write: bool = False) -> None:
    """Write a checkpoint.

    Args:
        state: what to write.
        path: where.
        async_write: passed by fairseq; writing waits all the same.

    Raises:
        UserError: it cannot be written.
    """
    content = io.BytesIO()
    torch.save(state, content)
    write_whole(path, content.getbuffer())


@replaces(PathManager, "copy")
def copy(source: str, path: str, overwrite: bool = False) -> bool:
    """Copy a checkpoint.

    Args:
        source: what to copy.
        path: where.
        overwrite: passed by fairseq, which always means it.

    Returns:
        True.

    Raises:
        UserError: it cannot be written.
    """
    write_whole(path, Path(source).read_bytes())
    return True
