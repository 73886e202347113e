"""Reading a checkpoint that may be damaged, hostile or of another program: it runs no code, takes
no more memory than its size, and gives numbers and flags, or a sentence.

torch reads weights only, but checks no CRC, unpacks what is compressed, and calls what is on its
list, by which few bytes make a large tensor. fairseq looks at nothing in it.
"""

import contextlib
import math
import os
import pickletools
import re
import stat
import zipfile
from argparse import Namespace
from collections.abc import Callable
from typing import BinaryIO

import torch
from torch import Tensor

from fairseq_csp.errors import UserError

# most operations of a pickle: each makes an object of about 100 bytes; a checkpoint has thousands
OPERATIONS = 1_000_000
# deepest that flags are nested
DEPTH = 12
# pickles before the storages in a file of torch's older form
LEGACY_PICKLES = 5
# most symbols of a text or pixels of an image
LARGEST_INPUT = 1 << 28
# what makes symbols of a text; the last: it consists of them
TOKENIZERS = ("bytes", "sentencepiece", "symbols")
METERS = ("AverageMeter", "StopwatchMeter", "TimeMeter")


class _Refused(Exception):
    """What is wrong with a checkpoint."""


def load(path: str | os.PathLike[str]) -> dict:
    """Read a checkpoint.

    Args:
        path: a regular file, written by this project, by fairseq 0.12 or by the published code.

    Returns:
        ``model``, ``cfg`` or ``args``, ``optimizer_history``, ``last_optimizer_state``,
        ``extra_state`` and ``task_state``, each of the form that fairseq writes; what else is in
        the file is left out.

    Raises:
        UserError: what :func:`read` raises, or a part is missing or of another form.
    """
    content = read(path)
    try:
        return _known(content)
    except _Refused as error:
        raise UserError(f"{path} is not a whole checkpoint of fairseq: {error}") from error


def read(path: str | os.PathLike[str]) -> object:
    """Read what torch has written, of whichever form: numbers, text and tensors.

    Args:
        path: a regular file.

    Raises:
        UserError: it could run code and is refused, its content differs from what was written, or
            it is not whole.
    """
    try:
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            _check_container(file, size)
            file.seek(0)
            with torch.serialization.safe_globals([Namespace]):
                content = torch.load(file, map_location="cpu", weights_only=True)
        _check_plain(content, size)
        return content
    except _Refused as error:
        raise UserError(f"{path} is not a whole checkpoint: {error}") from error
    except Exception as error:  # a damaged file can fail in any way
        asked_for = re.search(r"GLOBAL (\S+)", str(error))
        if asked_for:
            raise UserError(
                f"{path} is refused: it asks for {asked_for[1]}, but a checkpoint must hold "
                "numbers and flags and nothing that could run code"
            ) from error
        raise UserError(
            f"{path} is not a whole checkpoint ({type(error).__name__}): it is cut short or "
            "damaged, or of another program"
        ) from error


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file; to open a pipe would wait for a writer."""
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):
            raise _Refused(f"it is {'a directory' if stat.S_ISDIR(kind) else 'no regular file'}")
        return open(path, "rb")
    except OSError as error:
        raise _Refused(f"it cannot be read ({error.strerror})") from error


def _check_container(file: BinaryIO, size: int) -> None:
    """Check what holds the pickle and the numbers, before torch reads either."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        # whatever is not of torch's older form torch refuses
        with contextlib.suppress(ValueError):
            _count_operations(file, LEGACY_PICKLES)
        return
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise _Refused("it is compressed, which torch never does")
        if sum(member.file_size for member in members) > size:
            raise _Refused("its parts overlap")
        if len({member.filename for member in members}) < len(members):
            raise _Refused("a part is there twice")
        # reads all, which compares each part with its CRC
        damaged = archive.testzip()
        if damaged is not None:
            raise _Refused(f"{damaged} is not what was written: the file is damaged")
        for member in members:
            if member.filename.endswith(".pkl"):
                with archive.open(member) as pickle:
                    _count_operations(pickle, 1)


def _count_operations(file: BinaryIO, pickles: int) -> None:
    left = OPERATIONS
    for _ in range(pickles):
        for _ in pickletools.genops(file):
            left -= 1
            if left < 0:
                raise _Refused(f"it holds more than {OPERATIONS:,} objects")


def _check_plain(state: object, size: int) -> None:
    """Check that there are only numbers, text, and tensors no larger than the file, in a tree."""
    left, room = OPERATIONS, size

    def check(value: object, depth: int) -> None:
        nonlocal left, room
        left -= 1
        if left < 0 or depth > DEPTH:
            raise _Refused("it is nested too deeply")
        if isinstance(value, Tensor):
            if type(value) not in (Tensor, torch.nn.Parameter) or value.is_quantized:
                raise _Refused(f"it holds a {type(value).__name__} in the place of a plain tensor")
            if value.layout != torch.strided or value.device.type != "cpu":
                raise _Refused("it holds a tensor without numbers")
            room -= value.numel() * value.element_size()
            if room < 0:
                raise _Refused("it claims more numbers than the file holds")
        elif isinstance(value, Namespace):
            check(vars(value), depth + 1)
        elif isinstance(value, dict):
            for key, inner in value.items():
                if type(key) not in (str, int):
                    raise _Refused(f"it holds a {type(key).__name__} in the place of a name")
                check(inner, depth + 1)
        elif isinstance(value, list | tuple):
            for inner in value:
                check(inner, depth + 1)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise _Refused("it holds a whole number of more than 64 bits")
        elif not (value is None or isinstance(value, bool | int | float | str)):
            raise _Refused(f"it holds a {type(value).__name__}, no number or text")

    check(state, 0)


def _known(state: object) -> dict:
    """Take what is known of a checkpoint, each part checked for its form."""
    state = _mapping(state, "it")
    weights = _mapping(state.get("model"), "model")
    if not weights or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise _Refused("model holds no weights")
    args, cfg = state.get("args"), state.get("cfg")
    if args is None and cfg is None:
        raise _Refused("it has no flags")
    if args is not None and not isinstance(args, Namespace):
        raise _Refused("args holds no flags")
    return {
        "model": weights,
        "args": args,
        "cfg": None if cfg is None else _mapping(cfg, "cfg"),
        "optimizer_history": _history(state.get("optimizer_history")),
        "last_optimizer_state": _optimizer(state.get("last_optimizer_state")),
        "extra_state": _extra(_mapping(state.get("extra_state"), "extra_state")),
        "task_state": _task(_mapping(state.get("task_state", {}), "task_state")),
    }


def _history(history: object) -> list[dict]:
    """Take the last entry, which alone is used: the optimizer's name and the updates."""
    if not isinstance(history, list) or not history:
        raise _Refused("optimizer_history is missing")
    last = _mapping(history[-1], "optimizer_history")
    schedule = _mapping(last.get("lr_scheduler_state"), "lr_scheduler_state")
    return [
        {
            "criterion_name": _a(str, last, "criterion_name"),
            "optimizer_name": _a(str, last, "optimizer_name"),
            "lr_scheduler_state": {
                key: value for key, value in schedule.items() if value is None or _is_number(value)
            },
            "num_updates": _count(last, "num_updates"),
        }
    ]


def _optimizer(state: object) -> dict | None:
    if state is None:
        return None
    state = dict(_mapping(state, "last_optimizer_state"))
    groups = state.get("param_groups")
    if not isinstance(groups, list) or not all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
    ):
        raise _Refused("last_optimizer_state has no param_groups")
    for moments in _mapping(state.get("state"), "last_optimizer_state").values():
        for key, value in _mapping(moments, "last_optimizer_state").items():
            if not (value is None or isinstance(value, Tensor) or _is_number(value)):
                raise _Refused(f"{key} of the optimizer is no number")
    for key in ("loss_scale",):
        if key in state and not _is_number(state[key]):
            raise _Refused(f"{key} is no number")
    return state


def _extra(extra: dict) -> dict:
    """Take the place in the data, the best score, and meters where they are whole."""
    place = _mapping(extra.get("train_iterator"), "train_iterator")
    iterator = {
        "version": _count(place, "version", 1),
        "epoch": max(1, _count(place, "epoch")),
        "iterations_in_epoch": _count(place, "iterations_in_epoch", 0),
        "shuffle": bool(place.get("shuffle", True)),
    }
    known: dict = {"train_iterator": iterator}
    for key in ("val_loss", "best", "previous_training_time"):
        value = extra.get(key)
        if value is not None and not _is_number(value):
            raise _Refused(f"{key} is no number")
        if key in extra and (value is not None or key == "val_loss"):
            known[key] = value
    metrics = extra.get("metrics")
    if isinstance(metrics, dict) and all(map(_are_meters, metrics.values())):
        known["metrics"] = metrics
    average = extra.get("ema")
    if isinstance(average, dict) and all(isinstance(x, Tensor) for x in average.values()):
        known["ema"] = average
    return known


def _are_meters(meters: object) -> bool:
    def whole(entry: object) -> bool:
        if not isinstance(entry, list | tuple) or len(entry) != 4:
            return False
        priority, name, kind, values = entry
        return (
            _is_number(priority)
            and isinstance(name, str)
            and kind in METERS
            and isinstance(values, dict)
            and all(
                value is None
                or _is_number(value)
                or (isinstance(value, Tensor) and not value.dim())
                for value in values.values()
            )
        )

    return isinstance(meters, list | tuple) and all(map(whole, meters))


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value <= LARGEST_INPUT


# what inputs from elsewhere are encoded by
_INPUT: dict[str, Callable[[object], bool]] = {
    "documents": lambda value: type(value) is int and value in (1, 2),
    "tokenizer": lambda value: value is None or value in TOKENIZERS,
    "cut": lambda value: value is None or _is_size(value),
    "pixels": lambda value: value is None or _is_size(value),
    "image_size": lambda value: (
        isinstance(value, list) and len(value) == 2 and all(map(_is_size, value))
    ),
    "files": lambda value: type(value) is bool,
}


def _task(task: dict) -> dict:
    for key in ("symbols", "classes"):
        names = task.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _Refused(f"{key} holds no names")
    for key in ("pixel_mean", "pixel_std"):
        numbers = task.get(key, [])
        if not isinstance(numbers, list) or not all(map(_is_number, numbers)):
            raise _Refused(f"{key} holds no numbers")
    for key, fits in _INPUT.items():
        if key in task and not fits(task[key]):
            raise _Refused(f"{key} is {task[key]!r}"[:100])
    return task


def _mapping(value: object, name: str) -> dict:
    if not isinstance(value, dict):
        raise _Refused(f"{name} is {'missing' if value is None else 'no table of values'}")
    return value


def _a(kind: Callable, values: dict, key: str) -> object:
    if type(values.get(key)) is not kind:
        raise _Refused(f"{key} is {'missing' if key not in values else 'of another kind'}")
    return values[key]


def _count(values: dict, key: str, default: int | None = None) -> int:
    value = values.get(key, default)
    if type(value) is not int or value < 0:
        raise _Refused(f"{key} is no count")
    return value


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not math.isnan(value)
