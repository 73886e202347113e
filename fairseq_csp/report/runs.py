"""Finding training runs and reading what they left: configuration, result, cost and curves."""

import json
import math
import pickle
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from fairseq_csp.errors import UserError
from fairseq_csp.report.logs import Log, Point, read_log
from fairseq_csp.train_lra import RESULT

BEST, LAST, COMMANDS = "checkpoint_best.pt", "checkpoint_last.pt", "command.jsonl"
FINISHED, NOT_TESTED = "finished", "not tested"
# where two runs of a cell may differ; the others are paths, logging, and what follows from these
_GROUPS = ("model", "task", "optimization", "optimizer", "lr_scheduler")
_KEYS = {
    "common": ("fp16", "bf16", "amp", "memory_efficient_fp16", "memory_efficient_bf16"),
    "dataset": ("batch_size", "max_tokens", "train_subset"),
    "distributed_training": ("distributed_world_size",),
}
# told by the cell itself, or not by what the run computes
_LEFT_OUT = {"data", "seed", "attention", "attention_activation_fn"}
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
# what reading a file ends in that is damaged, or something else than a checkpoint
_DAMAGE = (
    *(AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class Run:
    """A training run, as far as its files tell of it.

    Attributes:
        path: its directory, or its log where there is no directory.
        status: ``finished`` (trained and tested), ``not tested`` (trained), or in words what else.
        data: directory of its data.
        generated: its data is generated or limited, as the data's ``summary.json`` tells.
        architecture: name of the architecture.
        attention: name of the attention function; ``none`` for the LSTM.
        settings: flags by name, those that tell two runs of one cell apart.
        seed: seed of weights, order and dropout.
        chance: accuracy of guessing, percent.
        valid: best accuracy on the valid split, percent.
        test: accuracy of the best checkpoint on the test split, percent.
        parameters: trained parameters.
        updates: updates done.
        tokens_per_second: positions without padding, while it trained.
        seconds: wall time of the training, validation included, over all its resumptions.
        curves: points by update, for ``train`` and ``valid``.
        started: when, with what revision and machine, as ``train_lra.sh`` wrote it down.
    """

    path: Path
    status: str
    data: str | None = None
    generated: bool = False
    architecture: str = "?"
    attention: str = "?"
    settings: dict[str, str] | None = None
    seed: int | None = None
    chance: float | None = None
    valid: float | None = None
    test: float | None = None
    parameters: int | None = None
    updates: int | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    curves: dict[str, dict[int, Point]] | None = None
    started: dict | None = None

    @property
    def dataset(self) -> str:
        """Name of the directory of its data."""
        return Path(self.data).name if self.data else "?"

    @property
    def family(self) -> str:
        """First word of the architecture's name."""
        return self.architecture.partition("_")[0]


def find_runs(roots: Iterable[Path]) -> list[Run]:
    """Read all runs below some directories, in the order of their paths.

    A run is a directory with checkpoints or ``train_lra.sh``'s record, or a log of fairseq-train
    that belongs to no such directory. The status of one that cannot be read says so.

    Raises:
        UserError: a directory is not there, or there is no run.
    """
    roots = list(roots)
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} is no directory: name one that holds training runs")
    marks = (BEST, LAST, COMMANDS)
    directories = {
        file.parent.resolve(): file.parent
        for root in roots
        for mark in marks
        for file in root.rglob(mark)
    }
    logs: dict[Path, list[Path]] = {directory: [] for directory in directories}
    found = {file for root in roots for file in root.rglob("*.log") if file.is_file()}
    for file in sorted(found, key=_written):
        owner = _owner(file, logs)
        if owner is not None:
            directories.setdefault(owner, file)
            logs.setdefault(owner, []).append(file)
    if not logs:
        raise UserError(
            f"there is no training run in {' '.join(map(str, roots))}: a run is a directory with "
            f"{' or '.join(marks)}, or a log of fairseq-train"
        )
    return sorted(
        (_read_run(directories[owner], files) for owner, files in logs.items()),
        key=lambda run: run.path,
    )


def _owner(file: Path, logs: dict[Path, list[Path]]) -> Path | None:
    """Return the run that a log belongs to; None when it is no log of a training."""
    if file.parent.resolve() in logs:
        return file.parent.resolve()
    log = read_log([file])
    if not log.started:
        return None
    save_dir = log.config.get("checkpoint", {}).get("save_dir")
    if save_dir and Path(save_dir).resolve() in logs:
        return Path(save_dir).resolve()
    return file.resolve()


def _written(file: Path) -> float:
    return file.stat().st_mtime


def read_record(file: Path) -> dict:
    """Read what a run wrote down.

    Args:
        file: its ``command.jsonl``, of which the last line is read, or another file of one object.

    Returns:
        The object; an empty one where the file is not there.

    Raises:
        UserError: it is empty, half written or damaged.
    """
    if not file.exists():
        return {}
    try:
        text = file.read_text(encoding="utf-8")
        record = json.loads(text.splitlines()[-1] if file.suffix == ".jsonl" else text)
    except (IndexError, OSError, RecursionError, ValueError):
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{file} is empty or damaged: remove it, or the whole run")
    return record


def _read_run(path: Path, files: list[Path]) -> Run:
    """Read a run; of one with a damaged file, tell what is damaged."""
    records = []
    for name in (COMMANDS, RESULT):
        try:
            records.append(read_record(path / name))
        except UserError:
            return Run(path, f"record cannot be read ({name})")
    record, result = records
    try:
        state = _load(path / LAST) or _load(path / BEST)
        return _whole_run(path, read_log(files), record, result, state)
    except _DAMAGE as error:
        return Run(path, f"checkpoint cannot be read ({type(error).__name__})", started=record)


def _whole_run(path: Path, log: Log, record: dict, result: dict, state: dict | None) -> Run:
    config = (state or {}).get("cfg") or log.config
    extra = (state or {}).get("extra_state") or {}
    curves = {
        "train": log.curves.get("train_inner") or log.curves.get("train") or {},
        "valid": log.curves.get("valid", {}),
    }
    history = (state or {}).get("optimizer_history") or [{}]
    updates = max(
        [
            history[-1].get("num_updates", 0),
            *(update for curve in curves.values() for update in curve),
        ]
    )
    model = config.get("model") or {}
    classes = model.get("sentence_class_num")
    data = (config.get("task") or {}).get("data")
    return Run(
        path=path,
        status=_status(log, config, result, updates),
        data=data,
        generated=_is_generated(data),
        architecture=model.get("_name") or "?",
        attention=_attention(model),
        settings=_settings(config),
        seed=(config.get("common") or {}).get("seed"),
        chance=100 / classes if classes else None,
        valid=_best_valid(config, extra, curves["valid"]),
        test=result.get("accuracy"),
        parameters=_parameters(state["model"]) if state else None,
        updates=updates or None,
        tokens_per_second=_speed(extra),
        seconds=extra.get("previous_training_time"),
        curves=curves,
        started=record,
    )


def _is_generated(data: str | None) -> bool:
    """Tell whether a set is generated or limited; a published one has no summary."""
    if data is None:
        return False
    try:
        summary = read_record(Path(data) / "summary.json")
    except UserError:
        return False
    return bool(summary.get("limited")) or "generator" in summary.get("source", {})


def _load(file: Path) -> dict | None:
    # mapped: of the weights only their sizes are looked at
    return (
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if file.exists()
        else None
    )


def _status(log: Log, config: dict, result: dict, updates: int) -> str:
    status = result.get("exit_status")
    if status == 0:
        return FINISHED
    if status is not None:
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"crashed ({how})"
    if log.raised:
        return f"crashed ({log.raised})"
    planned = (config.get("optimization") or {}).get("max_update") or math.inf
    if log.trained or updates >= planned:
        return NOT_TESTED
    return "unfinished" if updates else "no update was logged"


def _attention(model: dict) -> str:
    family = model.get("layer_type")
    if family == "lstm":
        return "none"
    own = "softmax" if family == "transformer" else model.get("attention_activation_fn")
    return model.get("attention") or own or "?"


def _settings(config: dict) -> dict[str, str]:
    """Return the flags that tell two runs of a cell apart, each with its value."""
    chosen = [(group, config.get(group) or {}, None) for group in _GROUPS]
    chosen += [(group, config.get(group) or {}, keys) for group, keys in _KEYS.items()]
    settings = {}
    for group, values, keys in chosen:
        for key, value in values.items():
            if key in _LEFT_OUT or (keys is not None and key not in keys):
                continue
            name = group if key == "_name" else key
            settings[f"--{name.replace('_', '-')}"] = _shown(value)
    return settings


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _best_valid(config: dict, extra: dict, curve: dict[int, Point]) -> float | None:
    if curve:
        return max(point.accuracy for point in curve.values())
    if (config.get("checkpoint") or {}).get("best_checkpoint_metric") == "accuracy":
        return extra.get("best")
    return None


def _parameters(state: dict[str, torch.Tensor]) -> int:
    return sum(weight.numel() for name, weight in state.items() if not name.endswith(_BUFFERS))


def _speed(extra: dict) -> float | None:
    """Return the tokens of all updates over the time in updates, without validation."""
    meters = dict(extra.get("metrics") or {}).get("default", [])
    sums = {key: values.get("sum") for _, key, _, values in meters}
    tokens, seconds = sums.get("wpb"), sums.get("train_wall")
    return tokens / seconds if tokens and seconds else None
