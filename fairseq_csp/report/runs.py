"""Finding training runs and reading what they left: configuration, result, cost and curves."""

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fairseq_csp.errors import UserError
from fairseq_csp.output import printable
from fairseq_csp.report.flags import attention_name, settings
from fairseq_csp.report.logs import Log, Point, read_log
from fairseq_csp.report.records import (
    Fields,
    OddValueError,
    read_checkpoint,
    read_record,
    read_records,
)
from fairseq_csp.train_lra import COMMANDS, RESULT, STAGES

BEST, LAST = "checkpoint_best.pt", "checkpoint_last.pt"
FINISHED, NOT_TESTED, STAGE = "finished", "not tested", "stage of a run"
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Start:
    """What ``train_lra.sh`` wrote down when a run was last started.

    Attributes:
        time: when, in an order that is that of the texts.
        commands: the ``fairseq-train`` command, behind those of the stages before it.
        revision: of this repository.
        machine: the GPUs, or the processor where there are none.
        changed: flags that had other values before it was resumed, at any of its starts.
    """

    time: str = ""
    commands: tuple[str, ...] = ()
    revision: str = ""
    machine: str = ""
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A training run, as far as its files tell of it.

    Attributes:
        path: its directory, or its log where there is no directory.
        status: ``finished`` (trained and tested), ``not tested`` (trained), ``stage of a run``
            (trained, and another training began with its weights), or in words what else.
        data: directory of its data.
        generated: its data is generated or limited, as the data's ``summary.json`` tells.
        architecture: name of the architecture.
        attention: name of the attention function; ``none`` for the LSTM.
        settings: flags by name, those that tell two runs of one cell apart.
        seed: seed of weights, order and dropout.
        chance: accuracy of guessing, percent.
        valid: best accuracy on the valid split, percent.
        test: accuracy of the best checkpoint on the test split, percent.
        chosen_on_test: the best checkpoint was chosen on the test split, as some publish it.
        examples: how many examples that split has.
        parameters: trained parameters.
        updates: updates done.
        tokens_per_second: positions without padding, while it trained.
        seconds: wall time of the training, validation included, over all its resumptions.
        curves: points by update, for ``train`` and ``valid``.
        start: how it was last started.
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
    chosen_on_test: bool = False
    examples: int | None = None
    parameters: int | None = None
    updates: int | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    curves: dict[str, dict[int, Point]] | None = None
    start: Start = Start()

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
    found = {file for root in roots for file in root.rglob("*.log") if os.path.isfile(file)}
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
    try:
        log = read_log([file])
    except (OSError, OddValueError):
        # whatever it is, no training is known by it
        return None
    try:
        save_dir = Fields(log.config, "log").fields("checkpoint").text("save_dir")
    except OddValueError:
        save_dir = None
    if log.started and save_dir and Path(save_dir).resolve() in logs:
        return Path(save_dir).resolve()
    return file.resolve() if log.started else None


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        # removed meanwhile
        return 0


def _read_run(path: Path, files: list[Path]) -> Run:
    """Read a run; of one with a file that is damaged or odd, tell which and how."""
    start = Start()
    name = COMMANDS
    try:
        start = _start([Fields(each, COMMANDS) for each in read_records(path / COMMANDS)])
        name = RESULT
        result = Fields(read_record(path / RESULT), RESULT)
        status, test, examples = _result(result)
    except UserError:
        return Run(path, f"record cannot be read ({name})", start=start)
    except OddValueError as error:
        return Run(path, f"record cannot be read ({name}: {error})", start=start)
    try:
        log = read_log(files)
    except (OSError, OddValueError) as error:
        return Run(path, f"log cannot be read ({_told(error)})", start=start)
    what = "checkpoint"
    try:
        state = read_checkpoint(path / LAST)
        if not state.values:
            state = read_checkpoint(path / BEST)
        what = "checkpoint" if state.values else "log"
        return _whole_run(path, log, state, status, test, examples, start)
    except Exception as error:  # a damaged file can fail in any way
        return Run(path, f"{what} cannot be read ({_told(error)})", start=start)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, OddValueError) else type(error).__name__


def _start(records: list[Fields]) -> Start:
    if not records:
        return Start()
    last = records[-1]
    changed = dict.fromkeys(str(flag) for each in records for flag in each.fields("changed").values)
    return Start(
        last.text("started") or "",
        tuple(filter(None, [*last.texts("stages"), last.text("command")])),
        last.text("revision") or "",
        ", ".join(last.texts("gpus")) or last.text("machine") or "",
        tuple(changed),
    )


def _result(result: Fields) -> tuple[int | None, float | None, int | None]:
    """Return exit status, test accuracy in percent and number of test examples."""
    return (
        result.whole("exit_status", -1000, 1000),
        result.number("accuracy", 0, 100),
        result.whole("examples", 1),
    )


def _whole_run(
    path: Path,
    log: Log,
    state: Fields,
    status: int | None,
    test: float | None,
    examples: int | None,
    start: Start,
) -> Run:
    config = state.fields("cfg")
    if not config.values:
        config = Fields(log.config, "log")
    extra = state.fields("extra_state")
    curves = {
        "train": log.curves.get("train_inner") or log.curves.get("train") or {},
        "valid": log.curves.get("valid", {}),
    }
    history = state.values.get("optimizer_history") or [{}]
    in_checkpoint = Fields(history[-1], "optimizer_history").whole("num_updates") or 0
    updates = max([in_checkpoint, *(update for curve in curves.values() for update in curve)])
    done = _status(log, config, status, updates)
    if done == FINISHED and test is None:
        done = NOT_TESTED
    model = config.fields("model")
    classes = model.whole("sentence_class_num", 1)
    data = config.fields("task").text("data")
    return Run(
        path=path,
        status=STAGE if done in (FINISHED, NOT_TESTED) and _is_stage(path) else done,
        data=data,
        generated=_is_generated(data),
        architecture=model.text("_name") or "?",
        attention=attention_name(config),
        settings=settings(config),
        seed=config.fields("common").whole("seed"),
        chance=100 / classes if classes else None,
        valid=_best_valid(config, extra, curves["valid"]),
        test=test,
        chosen_on_test=config.fields("dataset").text("valid_subset") == "test",
        examples=examples,
        parameters=_parameters(state) if state.values else None,
        updates=updates or None,
        tokens_per_second=_speed(extra),
        seconds=extra.number("previous_training_time"),
        curves=curves,
        start=start,
    )


def _is_stage(path: Path) -> bool:
    return path.parent.name == STAGES and (path.parent.parent / COMMANDS).is_file()


def _is_generated(data: str | None) -> bool:
    """Tell whether a set is generated or limited; a published one has no summary."""
    if data is None:
        return False
    try:
        summary = Fields(read_record(Path(data) / "summary.json"), "summary.json")
        return (
            summary.values.get("limited") is True or "generator" in summary.fields("source").values
        )
    except (OSError, ValueError):
        # damaged, odd, or out of reach
        return False


def _status(log: Log, config: Fields, status: int | None, updates: int) -> str:
    if status == 0:
        return FINISHED
    if status is not None:
        return f"crashed ({_signal(-status) if status < 0 else f'exit status {status}'})"
    if log.raised:
        return f"crashed ({printable(log.raised)})"
    planned = config.fields("optimization").number("max_update") or float("inf")
    if log.trained or updates >= planned:
        return NOT_TESTED
    return "unfinished" if updates else "no update was logged"


def _signal(number: int) -> str:
    known = [each.name for each in signal.Signals if each == number]
    return known[0] if known else f"signal {number}"


def _best_valid(config: Fields, extra: Fields, curve: dict[int, Point]) -> float | None:
    if curve:
        return max(point.accuracy for point in curve.values())
    if config.fields("checkpoint").text("best_checkpoint_metric") == "accuracy":
        return extra.number("best", 0, 100)
    return None


def _parameters(state: Fields) -> int:
    return sum(
        weight.numel()
        for name, weight in Fields(state.values.get("model"), "model").values.items()
        if isinstance(weight, Tensor) and not name.endswith(_BUFFERS)
    )


def _speed(extra: Fields) -> float | None:
    """Return the tokens of all updates over the time in updates, without validation."""
    sums = {
        key: Fields(values, key).number("sum")
        for _, key, _, values in extra.fields("metrics").values.get("default", [])
        if key in ("wpb", "train_wall")
    }
    tokens, seconds = sums.get("wpb"), sums.get("train_wall")
    return tokens / seconds if tokens and seconds else None
