"""Flags are checked before anything is built, by the table of :mod:`fairseq_csp.flags`.

fairseq takes any number, replaces ``${...}`` in text by other values and by variables of the
environment, trains a classifier with a loss that takes class 1 for padding where none was named,
keeps the worst checkpoint where the metric's direction was not told, and finds other mistakes after
the first epoch or in a traceback.
"""

import os
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from fairseq import options
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.dataclass import utils
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY

from fairseq_csp.errors import UserError
from fairseq_csp.fairseq_patches import is_fairseqs, replaces
from fairseq_csp.flags import check_values, named

CRITERION = "lra_cross_entropy"
# of fairseq's schedules: a number that they divide by, and the least that it may be
DIVISORS = (
    ("inverse_sqrt", "warmup_updates", 1),
    ("triangular", "lr_period_updates", 2),
)
ARCH_IS_MISSING = "--arch is missing: give an architecture, such as mega_lra_listop"


@replaces(options, "parse_args_and_arch")
def parse_args_and_arch(*arguments: object, **options: object) -> object:
    """Read a command line.

    Args:
        arguments: as fairseq's.
        options: as fairseq's.

    Returns:
        The flags.

    Raises:
        UserError: a value cannot be read, or two flags exclude each other.
    """
    try:
        return parse_args_and_arch.original(*arguments, **options)
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.text!r} cannot be read as a number or a list of some") from error
    except RuntimeError as error:
        # without words, where there is no architecture
        raise UserError(ARCH_IS_MISSING if not error.args else str(error)) from error
    except ValueError as error:
        if "--fp16" in str(error):
            raise UserError("--fp16 and --bf16 exclude each other: give one") from error
        raise UserError(f"the flags cannot be read: {error}") from error


@replaces(utils, "override_module_args")
def override_module_args(args: Namespace) -> tuple[list[str], list[str]]:
    """Turn flags into changes of the configuration.

    Args:
        args: the flags.

    Returns:
        The changes, and what to delete.

    Raises:
        UserError: one is not what it may be, or they do not go together.
    """
    check(vars(args))
    return override_module_args.original(args)


def check(values: Mapping[str, object]) -> None:
    """Check the flags of a command.

    Args:
        values: by key; of a training where ``save_dir`` is among them.

    Raises:
        UserError: one is not what it may be, or they do not go together.
    """
    task = TASK_REGISTRY.get(values.get("task"))
    if task is None or is_fairseqs(task):
        # of a task that is not from here
        return
    check_values(values)
    _check_machine(values)
    if values.get("batch_size") is None and values.get("max_tokens") is None:
        raise UserError("--batch-size is missing: give the examples of a batch")
    if "save_dir" in values:
        _check_training(values)
    if values.get("log_file"):
        _make_directory(values["log_file"])


def _check_machine(values: Mapping[str, object]) -> None:
    if values.get("fp16") and (values.get("cpu") or not torch.cuda.is_available()):
        raise UserError(
            "--fp16 needs a GPU: a CPU computes with 16-bit floats of that kind in no useful time; "
            "leave it out"
        )
    if values.get("fp16") and values.get("amp"):
        raise UserError("--fp16 and --amp exclude each other: give one")


def _check_training(values: Mapping[str, object]) -> None:
    arch, loss = values.get("arch"), values.get("criterion")
    if ARCH_MODEL_REGISTRY.get(arch) is None or is_fairseqs(ARCH_MODEL_REGISTRY[arch]):
        raise UserError(
            ARCH_IS_MISSING
            if arch is None
            else f"--arch is {arch}, which is not for --task {values['task']}: give one of ours, "
            "such as mega_lra_listop"
        )
    if values.get("encoder_ffn_embed_dim") == 0 and values.get("layer_type") != "mega":
        raise UserError("--encoder-ffn-embed-dim is 0, which only MEGA takes: give at least 1")
    criterion = CRITERION_REGISTRY.get(loss)
    if criterion is None or is_fairseqs(criterion):
        raise UserError(
            f"--criterion is {loss}, which is not for classes of whole sequences: give --criterion "
            f"{CRITERION}"
        )
    _check_best(values, getattr(criterion, "metrics", {}))
    for schedule, key, least in DIVISORS:
        if values.get("lr_scheduler") == schedule and (values.get(key) or 0) < least:
            raise UserError(
                f"{named(key)} is {values.get(key)}, but --lr-scheduler {schedule} divides by it: "
                f"give at least {least}"
            )
    if values.get("tensorboard_logdir"):
        _check_directory("--tensorboard-logdir", Path(values["tensorboard_logdir"]))


def _check_directory(flag: str, directory: Path) -> None:
    """Check that files can be written in a directory, which is left as it was, or not there.

    Raises:
        UserError: they cannot.
    """
    path = directory.absolute()
    missing = [place for place in (path, *path.parents) if not os.path.lexists(place)]
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(
            f"{flag} {directory} cannot be made or written ({error.strerror}): name another place"
        ) from error
    finally:
        for place in missing:
            with suppress(OSError):
                place.rmdir()


def _make_directory(log_file: str) -> None:
    """Make the directory of the log, which fairseq opens before it makes the run's.

    Raises:
        UserError: it cannot be made, or something else than a file is there.
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(log_file)), exist_ok=True)
        if os.path.exists(log_file) and not os.path.isfile(log_file):
            raise FileExistsError(0, "something else than a file is there")
    except OSError as error:
        raise UserError(
            f"--log-file {log_file} cannot be written ({error.strerror}): name another place"
        ) from error


def _check_best(values: Mapping[str, object], metrics: Mapping[str, bool]) -> None:
    """Check that the best checkpoint is told by a metric that is logged, and in its direction."""
    metric, highest = (
        values.get("best_checkpoint_metric"),
        values.get("maximize_best_checkpoint_metric"),
    )
    if not metrics:
        return
    if metric not in metrics:
        raise UserError(
            f"--best-checkpoint-metric is {metric}, which is not logged: give one of "
            f"{', '.join(metrics)}"
        )
    if bool(highest) != metrics[metric]:
        raise UserError(
            f"--best-checkpoint-metric {metric} is best where it is "
            f"{'highest: add' if metrics[metric] else 'lowest: leave out'} "
            "--maximize-best-checkpoint-metric"
        )
