"""A run goes on from a checkpoint that fits its flags and data, and ends where it has ended.

fairseq goes on with whatever flags and data it is given, so that the result is of neither command;
it sends the checkpoint from the first process to the others as a pickle of its own types, which
torch refuses to read; it compares the dictionaries of checkpoint and data only where it evaluates;
and it trains a run that has had all its updates for one more.
"""

import fcntl
import json
import logging
import math
import os
import shlex
import sys
import time
from pathlib import Path

from fairseq import checkpoint_utils
from fairseq.data.iterators import EpochBatchIterating
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.trainer import Trainer
from omegaconf import DictConfig

from fairseq_csp.errors import UserError
from fairseq_csp.fairseq_patches import early_stopping, replaces
from fairseq_csp.fairseq_patches.checkpoint_reading import read
from fairseq_csp.files import PARTIAL, read_text, write_text
from fairseq_csp.flags import named
from fairseq_csp.models.config import flags_with_effect

logger = logging.getLogger(__name__)
RECORD = "command.jsonl"
# of the model and the task, what does not change the function that is trained
FREE = {
    "model": ("dropout", "attention_dropout", "act_dropout", "feature_dropout", "keep_padding")
    + ("cuda_graphs", "apply_bert_init", "classifier_in_dim"),
    # the task compares those of pixels itself, which the data may give
    "task": ("data", "seed", "no_shuffle", "batch_by_length", "tf32", "pixel_mean", "pixel_std"),
}
# what may be changed on purpose in the course of a training
CHANGEABLE = {
    "model": FREE["model"][:6],
    "task": ("no_shuffle", "batch_by_length", "tf32"),
    "criterion": ("label_smoothing",),
    "common": ("seed", "fp16", "bf16", "amp"),
    "dataset": ("batch_size", "max_tokens"),
    "optimization": ("lr", "update_freq", "max_update", "max_epoch", "clip_norm"),
    "optimizer": ("_name", "adam_betas", "adam_eps", "weight_decay", "momentum"),
    "lr_scheduler": ("_name", "warmup_updates", "warmup_power", "warmup_init_lr")
    + ("end_learning_rate", "total_num_update", "power"),
}
NAMES = {"model": "arch"}
# how long a run is, which does not change what it has done
LENGTH = ("--max-update", "--max-epoch")


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
        SystemExit: with status 0, where the run has come to its end.
        UserError: the checkpoint does not fit the flags or the data.
    """
    for flag, path in (
        ("--restore-file", None if cfg.restore_file == "checkpoint_last.pt" else cfg.restore_file),
        ("--finetune-from-model", cfg.finetune_from_model),
    ):
        if path is not None and not os.path.isfile(path):
            raise UserError(
                f"{flag} {path} is {'no file' if os.path.lexists(path) else 'not there'}: name a "
                "checkpoint"
            )
    own = os.path.realpath(os.path.join(cfg.save_dir, "checkpoint_last.pt"))
    if os.path.lexists(own) and not os.path.isfile(own):
        raise UserError(f"{own} is no file: move it away, or give another --save-dir")
    goes_on = not (cfg.reset_optimizer or cfg.finetune_from_model)
    trainer.get_model().optimizer_is_restored = goes_on
    if trainer.data_parallel_rank == 0:
        for left_over in Path(cfg.save_dir).glob("checkpoint*.pt" + PARTIAL):
            left_over.unlink()
    # each process reads the file itself: torch refuses the pickle that fairseq would send
    cfg.load_checkpoint_on_all_dp_ranks = True
    changes: dict[str, tuple] = {}
    found = []
    early_stopping.restore({})

    def read_and_compare(path: str, *arguments: object, **options: object) -> dict:
        state = read(path, *arguments, **options)
        found.append(path)
        if goes_on or (not cfg.reset_optimizer and os.path.realpath(path) == own):
            _refuse_another_function(trainer.cfg, state["cfg"], path)
            if not cfg.reset_dataloader:
                trainer.task.expect_data(state["task_state"], path)
            changes.update(_changes(trainer.cfg, state["cfg"]))
            if "--batch-size" in changes:
                _rescale(state["extra_state"]["train_iterator"], *changes["--batch-size"])
        else:
            state["task_state"].pop("early_stopping", None)
        # fairseq does this only where it evaluates
        trainer.task.load_state_dict(state["task_state"])
        return state

    checkpoint_utils.load_checkpoint_to_cpu = read_and_compare
    try:
        extra, itr = load.original(cfg, trainer, **arguments)
    except UserError:
        raise
    except Exception as error:
        raise _told(error, bool(found)) from error
    finally:
        checkpoint_utils.load_checkpoint_to_cpu = read
    _check_batches(trainer.cfg, len(itr))
    _check_moments(trainer)
    _end_where_it_has_ended(cfg, trainer, itr, changes)
    if changes:
        _tell(cfg, trainer, changes)
    return extra, itr


def _check_batches(cfg: DictConfig, batches: int) -> None:
    """Refuse an epoch of which --skip-remainder-batch leaves nothing.

    fairseq leaves out the last batch, and then what does not fill an update.
    """
    if not cfg.optimization.skip_remainder_batch:
        return
    batches -= 1
    if batches < max(cfg.optimization.update_freq):
        raise UserError(
            f"--skip-remainder-batch leaves {max(batches, 0)} batches of an epoch, which make no "
            "update: leave it out, or lower --batch-size or --update-freq"
        )


def _told(error: Exception, found: bool) -> Exception:
    """Return what is to be said of an error of fairseq's.

    Args:
        error: raised while optimizer and schedule were made, or a checkpoint was loaded.
        found: a checkpoint was read.
    """
    context = error.__context__
    if isinstance(context, UserError):
        # what the model says of the weights, of which fairseq tells less
        return context
    if "dataloader mismatch" in str(error):
        return UserError(
            "an epoch has fewer batches now than were taken of it: begin it anew with "
            "--reset-dataloader, or give the --batch-size and data that the run began with"
        )
    if isinstance(error, AssertionError | ValueError | KeyError):
        # about the flags
        why = "the checkpoint does not fit the flags" if found else "the flags do not go together"
        return UserError(f"{why}: {error}")
    return error


def _refuse_another_function(cfg: DictConfig, saved: DictConfig, path: str) -> None:
    """Refuse to go on where the model would compute something else with its weights."""
    for group, free in FREE.items():
        for key, old in saved[group].items():
            new = cfg[group].get(key)
            if key in free or _same(old, new) or (group == "model" and _has_no_effect(key, cfg)):
                continue
            flag = named(NAMES.get(group, group) if key == "_name" else key)
            raise UserError(
                f"{flag} is {_shown(new)}, but {path} was trained with {_shown(old)}: give that, "
                "or another --save-dir to train anew (with --finetune-from-model to start from "
                "these weights)"
            )


def _has_no_effect(key: str, cfg: DictConfig) -> bool:
    """Tell whether a flag changes nothing in this family with this attention function."""
    return (
        "layer_type" in cfg.model and key in cfg.model and key not in flags_with_effect(cfg.model)
    )


def _changes(cfg: DictConfig, saved: DictConfig) -> dict[str, tuple]:
    """Return what was changed on purpose: flags with the old and the new value."""
    changes = {}
    for group, keys in CHANGEABLE.items():
        before, now = saved.get(group), cfg.get(group)
        if before is None or now is None:
            continue
        for key in keys:
            if key in before and key in now and not _same(before[key], now[key]):
                flag = named(group if key == "_name" else key)
                changes[flag] = (_plain(before[key]), _plain(now[key]))
    return changes


def _rescale(place: dict, before: object, now: object) -> None:
    """Take as many examples of an epoch for done as were, in batches of another size."""
    if isinstance(before, int) and isinstance(now, int):
        place["iterations_in_epoch"] = place["iterations_in_epoch"] * before // now


def _check_moments(trainer: Trainer) -> None:
    """Refuse an optimizer's state of other shapes than the weights."""
    for parameter, moments in trainer.optimizer.optimizer.state.items():
        for key, value in moments.items():
            if getattr(value, "ndim", 0) and value.shape != parameter.shape:
                raise UserError(
                    f"the checkpoint's {key} has shape {tuple(value.shape)} for weights of shape "
                    f"{tuple(parameter.shape)}: leave its optimizer out with --reset-optimizer"
                )


def _end_where_it_has_ended(
    cfg: CheckpointConfig, trainer: Trainer, itr: EpochBatchIterating, changes: dict[str, tuple]
) -> None:
    """End a run that has had its updates, its epochs or its patience.

    Raises:
        SystemExit: with status 0, where nothing is left.
        UserError: it had them with other flags, and its result is not that of this command.
    """
    updates, limits = trainer.get_num_updates(), trainer.cfg.optimization
    stopped = updates > 0 and early_stopping.has_stopped(cfg.patience)
    if not (
        stopped
        or 0 < limits.max_update <= updates
        or (updates and 0 < limits.max_epoch < itr.next_epoch_idx)
    ):
        return
    others = {flag: change for flag, change in changes.items() if flag not in LENGTH}
    if 0 < limits.max_update < updates:
        others["--max-update"] = (updates, limits.max_update)
    if others:
        raise UserError(
            f"{cfg.save_dir} is finished, and was trained with other flags: {_listed(others)}: "
            "give another --save-dir to train anew"
        )
    how = "stopped early" if stopped else f"had {updates:,} of {limits.max_update:,} updates"
    logger.info(f"{cfg.save_dir} has {how}: nothing is left")
    # as fairseq says it, for who reads its log
    logging.getLogger("fairseq_cli.train").info("done training in 0.0 seconds")
    raise SystemExit(0)


def _tell(cfg: CheckpointConfig, trainer: Trainer, changes: dict[str, tuple]) -> None:
    """Name what was changed in one warning, and record it beside the run."""
    if trainer.data_parallel_rank != 0:
        return
    logger.warning(f"{cfg.save_dir} goes on with other flags: {_listed(changes)}")
    path = os.path.join(cfg.save_dir, RECORD)
    if os.path.isfile(path) and _is_locked(path):
        # train_lra.sh holds it, and has written them down
        return
    lines = read_text(path).splitlines() if os.path.exists(path) else []
    try:
        record = dict(json.loads(lines[-1]))
    except (IndexError, RecursionError, TypeError, ValueError):
        record = {
            "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "command": shlex.join(sys.argv),
            "seed": trainer.cfg.common.seed,
        }
    record["changed"] = {flag: list(change) for flag, change in changes.items()}
    write_text(path, json.dumps(record) + "\n", add=True)


def _is_locked(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _listed(changes: dict[str, tuple]) -> str:
    return ", ".join(
        f"{flag} {_shown(new)} (was {_shown(old)})" for flag, (old, new) in changes.items()
    )


def _plain(value: object) -> object:
    return list(value) if not isinstance(value, str) and hasattr(value, "__iter__") else value


def _shown(value: object) -> str:
    value = _plain(value)
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    return "none" if value is None else str(value)


def _same(one: object, other: object) -> bool:
    """Compare two values of a flag, whichever of text, number or list each is written as."""
    first, second = (_plain(value) for value in (one, other))
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    numbers = (int, float)
    if type(first) in numbers and type(second) in numbers:
        return math.isclose(first, second, rel_tol=1e-12)
    return str(first).replace(" ", "") == str(second).replace(" ", "")
