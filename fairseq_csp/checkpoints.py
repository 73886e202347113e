"""Checkpoints that outlive a kill and a full disk, and runs that resume from whole ones only.

What fairseq 0.12 does instead: of the files of one save it writes the first under a temporary name
and copies it onto the others in place, so that a kill leaves half a ``checkpoint_last.pt``; on a
resumption it sends the checkpoint to other processes as a pickle, which torch refuses to read; and
it trains a run that has had all its updates for one more.
"""

import contextlib
import io
import logging
import math
import os
import re
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.file_io import PathManager
from fairseq.trainer import Trainer

from fairseq_csp.errors import UserError

logger = logging.getLogger(__name__)
# ends the name of a file that is being written
PARTIAL = ".tmp"
_load_checkpoint = checkpoint_utils.load_checkpoint
_read_checkpoint = checkpoint_utils.load_checkpoint_to_cpu
_load_models = checkpoint_utils.load_model_ensemble_and_task


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


def save(state: dict, path: str, async_write: bool = False) -> None:
    """Write a checkpoint; in the place of fairseq's ``torch_persistent_save``.

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


def copy(source: str, path: str, overwrite: bool = False) -> bool:
    """Copy a checkpoint; in the place of fairseq's ``PathManager.copy``.

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


def read(path: str, *arguments: object, **options: object) -> dict:
    """Read a checkpoint, weights only; in the place of fairseq's ``load_checkpoint_to_cpu``.

    Args:
        path: where.
        arguments: as there.
        options: as there.

    Raises:
        UserError: it could run code and is refused, or it is not a whole checkpoint.
    """
    try:
        return _read_checkpoint(path, *arguments, **options)
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


def load_models(paths: list[str | None], *arguments: object, **options: object) -> tuple:
    """Build the models of checkpoints; in the place of fairseq's ``load_model_ensemble_and_task``.

    Args:
        paths: where; None is what fairseq makes of a ``--path`` that was not given.
        arguments: as there.
        options: as there.

    Returns:
        The models, their configuration and their task.

    Raises:
        UserError: one is not there, or what :func:`read` raises.
    """
    for path in paths:
        if path is None or not os.path.exists(path):
            raise UserError(f"--path must name a checkpoint that is there, not {path}")
    return _load_models(paths, *arguments, **options)


def load(cfg: CheckpointConfig, trainer: Trainer, **arguments: object) -> tuple:
    """Resume a run; in the place of fairseq's ``load_checkpoint``.

    Args:
        cfg: flags of checkpoints.
        trainer: what to resume.
        arguments: for the iterator of the training data.

    Returns:
        What the checkpoint holds beside the trainer's state, and the iterator.

    Raises:
        SystemExit: with status 0, where the run has had all its updates.
        UserError: the checkpoint does not fit the flags or the data.
    """
    named = cfg.restore_file != "checkpoint_last.pt"
    if named and not os.path.exists(cfg.restore_file):
        raise UserError(f"--restore-file {cfg.restore_file} is not there")
    starts_anew = cfg.reset_optimizer or cfg.finetune_from_model
    trainer.get_model().optimizer_is_restored = not starts_anew
    if trainer.data_parallel_rank == 0:
        for left_over in Path(cfg.save_dir).glob("checkpoint*.pt" + PARTIAL):
            left_over.unlink()
    # each process reads the file itself: torch refuses the pickle that fairseq would send
    cfg.load_checkpoint_on_all_dp_ranks = True

    def read_and_compare(*arguments: object, **options: object) -> dict:
        state = read(*arguments, **options)
        # fairseq does this only where it evaluates
        trainer.task.load_state_dict(state.get("task_state", {}))
        return state

    checkpoint_utils.load_checkpoint_to_cpu = read_and_compare
    try:
        loaded = _load_checkpoint(cfg, trainer, **arguments)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error.__context__, UserError):
            # what the model says of the weights, of which fairseq tells less
            raise error.__context__ from None
        if isinstance(error, AssertionError | ValueError):
            # about the flags
            raise UserError(str(error)) from error
        raise
    finally:
        checkpoint_utils.load_checkpoint_to_cpu = read
    updates, most = trainer.get_num_updates(), trainer.cfg.optimization.max_update
    if 0 < most <= updates:
        logger.info(f"{cfg.save_dir} has had {updates:,} of {most:,} updates: nothing is left")
        raise SystemExit(0)
    return loaded


checkpoint_utils.load_checkpoint_to_cpu = read
checkpoint_utils.load_model_ensemble_and_task = load_models
checkpoint_utils.torch_persistent_save = save
checkpoint_utils.load_checkpoint = load
PathManager.copy = staticmethod(copy)
