"""A run goes on from a checkpoint that fits its flags and data, and ends where it has ended.

fairseq sends the checkpoint from the first process to the others as a pickle of its own types,
which torch refuses to read; it compares the dictionaries of checkpoint and data only where it
evaluates; and it trains a run that has had all its updates for one more.
"""

import logging
import os
from pathlib import Path

from fairseq import checkpoint_utils
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.trainer import Trainer

from fairseq_csp.errors import UserError
from fairseq_csp.fairseq_patches import replaces
from fairseq_csp.fairseq_patches.checkpoint_reading import read
from fairseq_csp.files import PARTIAL

logger = logging.getLogger(__name__)


@replaces(checkpoint_utils, "load_checkpoint")
def load(cfg: CheckpointConfig, trainer: Trainer, **arguments: object) -> tuple:
    """Resume a run.

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
        loaded = load.original(cfg, trainer, **arguments)
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
