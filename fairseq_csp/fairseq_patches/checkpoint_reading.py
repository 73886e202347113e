"""A checkpoint that is missing, damaged or hostile is told of in one sentence.

fairseq lets whatever error torch or its own code ends in pass.
"""

import argparse
import os
import re

import torch
from fairseq import checkpoint_utils

from fairseq_csp.errors import UserError
from fairseq_csp.fairseq_patches import replaces

# checkpoints of the published code hold their flags in a Namespace
torch.serialization.add_safe_globals([argparse.Namespace])


@replaces(checkpoint_utils, "load_checkpoint_to_cpu")
def read(path: str, *arguments: object, **options: object) -> dict:
    """Read a checkpoint, weights only.

    Args:
        path: where.
        arguments: as fairseq's.
        options: as fairseq's.

    Raises:
        UserError: it could run code and is refused, or it is not a whole checkpoint.
    """
    try:
        return read.original(path, *arguments, **options)
    except Exception as error:  # a damaged file can fail in any way
        asked_for = re.search(r"GLOBAL (\S+)", str(error))
        if asked_for:
            raise UserError(
                f"{path} is refused: it asks for {asked_for[1]}, but a checkpoint must hold "
                "numbers and flags and nothing that could run code"
            ) from error
        raise UserError(
            f"{path} is not a whole checkpoint of fairseq ({type(error).__name__}): it is cut "
            "short or damaged, or of another program"
        ) from error


@replaces(checkpoint_utils, "load_model_ensemble_and_task")
def load_models(paths: list[str | None], *arguments: object, **options: object) -> tuple:
    """Build the models of checkpoints.

    Args:
        paths: where; None is what fairseq makes of a ``--path`` that was not given.
        arguments: as fairseq's.
        options: as fairseq's.

    Returns:
        The models, their configuration and their task.

    Raises:
        UserError: one is not there, or what :func:`read` raises.
    """
    for path in paths:
        if path is None or not os.path.exists(path):
            raise UserError(f"--path must name a checkpoint that is there, not {path}")
    return load_models.original(paths, *arguments, **options)
