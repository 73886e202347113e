"""All runs of a product: families, attention functions, data sets, seeds; here or under SLURM.

    python -m fairseq_csp.grid models=mega,transformer attention=csp,default datasets=all seeds=3
    python -m fairseq_csp.grid status

A run is one of ``train_lra.sh``. What is finished is not run again, what was broken off goes on.
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
import torch

import fairseq_csp.plugin  # noqa: F401 (registers families and attention functions)
from fairseq_csp import supervise
from fairseq_csp.datasets import DATASETS
from fairseq_csp.errors import UserError
from fairseq_csp.files import write_whole
from fairseq_csp.models.family import can_take, family
from fairseq_csp.modules.attention import attention_class
from fairseq_csp.recipes.flags import DEFAULT, ROOT
from fairseq_csp.recipes.lra import PRESETS, stages
from fairseq_csp.report.pages import markdown_report
from fairseq_csp.report.records import read_record
from fairseq_csp.report.runs import find_runs
from fairseq_csp.train_lra import COMMANDS, RESULT, choice_of, prepare_data

logger = logging.getLogger("grid")
# the runs that were asked for, in the directory of the grid
GRID = "grid.json"
LAUNCHERS = ("local", "slurm")
# seconds between two looks at the jobs
PERIOD = 1.0
# seconds that jobs may take to end
GRACE = 20

USAGE = """\
Train each combination of families, attention functions, data sets and seeds; print the table.

    python -m fairseq_csp.grid models=MODEL,... datasets=DATASET,... [KEY=VALUE ...] [-- FLAG ...]
    python -m fairseq_csp.grid status [out=DIR]

    models      families of encoders
    attention   attention functions, default among them (default: csp)
    datasets    data sets, or all of the Long Range Arena
    seeds       how many, from 0, or a list (default: 3)
    preset      as in train_lra.sh (default: paper)
    launcher    local (default), or slurm
    jobs        runs at a time (default: 1)
    gpus        GPUs of each run (default: 1 where there is one, or under slurm; 0: CPU)
    partition   of slurm
    hours       most hours of a job under slurm (default: 24); the same grid again goes on
    data        the directory that holds the prepared data sets (default: lra_data)
    out         where the runs are kept (default: outputs/grid)
    user_dir    as in train_lra.sh

What follows -- goes to each fairseq-train. What is finished is not run again; what was broken off
goes on. Ctrl-C ends all jobs.
"""


@dataclass(frozen=True)
class Grid:
    """What the arguments ask for.

    Attributes:
        models: families.
        attention: attention functions, or ``default``.
        datasets: data sets.
        seeds: seeds of each cell.
        preset: one of ``PRESETS``.
        launcher: one of ``LAUNCHERS``.
        jobs: runs at a time.
        gpus: GPUs of each run; None: one where there is one.
        partition: of SLURM; None: its default.
        hours: most hours of a job under SLURM.
        data: directory that holds the prepared data sets; None: ``lra_data``.
        out: directory of the grid.
        user_dir: a user directory of somebody's own, or None.
        extra: further flags for each fairseq-train.
    """

    models: tuple[str, ...]
    attention: tuple[str, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    preset: str
    launcher: str
    jobs: int
    gpus: int | None
    partition: str | None
    hours: int
    data: str | None
    out: Path
    user_dir: str | None
    extra: tuple[str, ...]


def parse_grid(arguments: Sequence[str]) -> Grid:
    """Read the arguments.

    Args:
        arguments: ``key=value``, then perhaps ``--`` and flags.

    Raises:
        UserError: a key or value is unknown or missing.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    keys = [item.name for item in dataclasses.fields(Grid) if item.name != "extra"]
    given: dict[str, str] = {}
    for argument in arguments[:end]:
        key, _, value = argument.partition("=")
        if key not in keys or not value:
            raise UserError(f"{argument!r} is not KEY=VALUE with a key of {', '.join(keys)}")
        if key in given:
            raise UserError(f"{key} is given twice; give it once")
        given[key] = value
    for key in ("models", "datasets"):
        if key not in given:
            raise UserError(f"{key} is missing; write {key}=NAME,...")
    launcher, preset = given.get("launcher", "local"), given.get("preset", "paper")
    for key, value, valid in (("launcher", launcher, LAUNCHERS), ("preset", preset, PRESETS)):
        if value not in valid:
            raise UserError(f"{key} is {value!r}; it must be one of {', '.join(valid)}")
    datasets = given["datasets"].split(",")
    if datasets == ["all"]:
        # those that recipes were published for
        datasets = [name for name, entry in DATASETS.items() if entry.task.startswith("lra-")]
    seeds = [_number("seeds", part) for part in given.get("seeds", "3").split(",")]
    if not seeds[0] and len(seeds) == 1 and "," not in given.get("seeds", "3"):
        raise UserError("seeds is 0; it must be how many, or a list such as 0,1,")
    return Grid(
        models=tuple(given["models"].split(",")),
        attention=tuple(given.get("attention", "csp").split(",")),
        datasets=tuple(datasets),
        seeds=tuple(seeds) if len(seeds) > 1 else tuple(range(seeds[0])),
        preset=preset,
        launcher=launcher,
        jobs=_number("jobs", given.get("jobs", "1"), least=1),
        gpus=_number("gpus", given["gpus"]) if "gpus" in given else None,
        partition=given.get("partition"),
        hours=_number("hours", given.get("hours", "24"), least=1),
        data=given.get("data"),
        out=Path(given.get("out", ROOT / "outputs" / "grid")).absolute(),
        user_dir=given.get("user_dir"),
        extra=tuple(arguments[end + 1 :]),
    )


def _number(key: str, text: str, least: int = 0) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 11 and int(text) >= least):
        raise UserError(f"{key} is {text!r}; it must be a whole number of at least {least}")
    return int(text)


def runs_of(grid: Grid) -> dict[Path, list[str]]:
    """Return the arguments of ``train_lra.sh`` for each run, by its directory.

    Combinations that there are not are left out, with a line that says why.

    Args:
        grid: what was asked for.

    Raises:
        UserError: a name is unknown.
    """
    runs: dict[Path, list[str]] = {}
    for dataset in grid.datasets:
        if dataset not in DATASETS:
            raise UserError(f"datasets has {dataset!r}; it takes {', '.join(DATASETS)}, or all")
        suffix = "-demo" if grid.preset == "demo" else ""
        data = Path(grid.data or "").absolute() / f"{dataset}{suffix}"
        for model in grid.models:
            try:
                stages(model, dataset, grid.preset)
            except ValueError as error:
                logger.info(f"left out: {error}")
                continue
            for attention in grid.attention:
                if attention != DEFAULT and not can_take(family(model), attention_class(attention)):
                    logger.info(f"left out: {model} does not take {attention}")
                    continue
                for seed in grid.seeds:
                    run = grid.out / dataset / f"{model}-{attention}" / f"seed-{seed}"
                    runs[run] = [
                        f"model_name={model}",
                        f"dataset_name={dataset}",
                        f"attention={attention}",
                        f"preset={grid.preset}",
                        f"seed={seed}",
                        f"save_dir={run}",
                        *([f"data_dir={data}"] if grid.data else []),
                        *([f"gpus={grid.gpus}"] if grid.gpus is not None else []),
                        *([f"user_dir={Path(grid.user_dir).absolute()}"] if grid.user_dir else []),
                        *(["--", *grid.extra] if grid.extra else []),
                    ]
    return runs


def state_of(run: Path) -> str:
    """Tell how far a run is, by the files in its directory.

    Returns:
        ``finished``, ``running``, ``failed`` with the exit status, ``broken off`` or ``waiting``.
    """
    record = run / COMMANDS
    if not record.is_file():
        return "waiting"
    with open(record, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return "running"
    try:
        status = read_record(run / RESULT).get("exit_status")
    except UserError:
        return "broken off"
    if status == 0:
        return "finished"
    return "broken off" if status is None else f"failed (exit status {status})"


def status_table(runs: Iterable[Path], out: Path) -> str:
    """Return the state of each run as a Markdown table.

    Args:
        runs: their directories.
        out: the directory of the grid.
    """
    lines = ["| run | state | test accuracy % |", "| --- | --- | ---: |"]
    for run in runs:
        state = state_of(run)
        accuracy = read_record(run / RESULT).get("accuracy") if state == "finished" else None
        shown = f"{accuracy:.2f}" if isinstance(accuracy, int | float) else ""
        lines.append(f"| {run.relative_to(out)} | {state} | {shown} |")
    return "\n".join(lines) + "\n"


def train_run(arguments: list[str]) -> int:
    """Train and test one run; what a job does.

    Args:
        arguments: those of ``train_lra.sh``.
    """
    command = [sys.executable, "-m", "fairseq_csp.train_lra", *arguments]
    return supervise.run(command, cwd=ROOT).returncode


class LocalJob:
    """A job on this machine, which can be ended with all that it started.

    submitit's own cancel ends what controls a job, and leaves the job itself running.

    Args:
        job: submitit's.
    """

    def __init__(self, job: submitit.Job) -> None:
        self.job = job
        self.ending: list[int] = []

    def done(self) -> bool:
        """Whether it has ended; once cancelled, whether all that it started has."""
        if self.ending:
            return not {number for number, _ in supervise.processes()} & set(self.ending)
        return self.job.done()

    def cancel(self) -> None:
        """End what controls it and the job itself; what watches over the training sees that."""
        controller = int(self.job.job_id)
        self.ending = [controller, *supervise.descendants(controller)]
        for number in self.ending[:2]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def _executor(grid: Grid) -> submitit.Executor:
    """Return what starts jobs.

    Raises:
        UserError: SLURM's commands are not there.
    """
    folder = grid.out / "jobs"
    if grid.launcher == "local":
        executor: Any = submitit.LocalExecutor(folder=folder)
        # without end
        executor.update_parameters(timeout_min=60 * 24 * 365)
        return executor
    try:
        executor = submitit.SlurmExecutor(folder=folder)
    except RuntimeError as error:
        raise UserError(f"launcher=slurm needs SLURM's commands: {error}") from None
    gpus = 1 if grid.gpus is None else grid.gpus
    executor.update_parameters(
        job_name="fairseq-csp",
        time=60 * grid.hours,
        **({"gpus_per_node": gpus} if gpus else {}),
        **({"partition": grid.partition} if grid.partition else {}),
    )
    return executor


def launch(
    grid: Grid, runs: dict[Path, list[str]], submit: Callable[[Path, list[str], int], Any]
) -> None:
    """Start the runs, ``jobs`` of them at a time, and wait for all.

    Args:
        grid: what was asked for.
        runs: the arguments of each run that is to be trained, by its directory.
        submit: starts a job in one of ``jobs`` slots; the job has ``done()`` and ``cancel()``.
    """
    waiting = list(runs.items())
    slots: dict[int, tuple[Path, Any]] = {}
    ended = 0
    try:
        while waiting or slots:
            for slot in [slot for slot, (_, job) in slots.items() if job.done()]:
                run, _ = slots.pop(slot)
                ended += 1
                logger.info(
                    f"{run.relative_to(grid.out)}: {state_of(run)} ({ended} of {len(runs)})"
                )
            for slot in set(range(grid.jobs)) - slots.keys():
                if waiting:
                    run, arguments = waiting.pop(0)
                    slots[slot] = (run, submit(run, arguments, slot))
                    logger.info(f"{run.relative_to(grid.out)}: started")
            time.sleep(PERIOD)
    finally:
        for _, job in slots.values():
            job.cancel()
        end = time.monotonic() + GRACE
        while any(not job.done() for _, job in slots.values()) and time.monotonic() < end:
            time.sleep(0.1)


def main(arguments: list[str]) -> int:
    """Train what is not trained yet and print the table, or print how far each run is.

    Returns:
        The exit status: 0 where every run is finished, else 1.

    Raises:
        UserError: something that was asked for cannot be done.
    """
    if not arguments or {"-h", "--help"} & set(arguments[:1]):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "status":
        out = arguments[1] if len(arguments) > 1 else "out=outputs/grid"
        if len(arguments) > 2 or not out.startswith("out="):
            raise UserError("usage: python -m fairseq_csp.grid status [out=DIR]")
        return _show_status((ROOT if len(arguments) == 1 else Path()) / out.removeprefix("out="))
    grid = parse_grid(arguments)
    runs = runs_of(grid)
    if not runs:
        raise UserError("there is no run in this grid: the lines above tell why")
    choices = {run: _choice(asked) for run, asked in runs.items()}
    grid.out.mkdir(parents=True, exist_ok=True)
    _remember(grid, runs)
    for name in grid.datasets:
        # one of each set, lest two runs prepare it at once
        choice = next((one for one in choices.values() if one.dataset_name == name), None)
        status = prepare_data(choice) if choice else 0
        if status:
            return status
    left = {run: asked for run, asked in runs.items() if state_of(run) != "finished"}
    logger.info(f"{len(runs)} runs, {len(runs) - len(left)} of them finished")
    if left:
        executor = _executor(grid)
        launch(grid, left, lambda run, asked, slot: _submit(grid, executor, asked, slot))
    sys.stdout.write(markdown_report(find_runs([grid.out])))
    unfinished = [run for run in runs if state_of(run) != "finished"]
    if unfinished:
        logger.error(
            f"{len(unfinished)} of {len(runs)} runs are not finished; what they said is in "
            f"{grid.out / 'jobs'}"
        )
    return 1 if unfinished else 0


def _choice(asked: Sequence[str]) -> Any:
    try:
        return choice_of(asked)
    except ValueError as error:
        raise UserError(f"train_lra.sh {' '.join(asked)}: {error}") from None


def _submit(grid: Grid, executor: submitit.Executor, asked: list[str], slot: int) -> Any:
    if grid.launcher == "local":
        each = min(1, torch.cuda.device_count()) if grid.gpus is None else grid.gpus
        there = max(1, torch.cuda.device_count())
        chosen = [(slot * each + number) % there for number in range(each)]
        executor.update_parameters(gpus_per_node=each, visible_gpus=chosen)
        return LocalJob(executor.submit(train_run, asked))
    return executor.submit(train_run, asked)


def _remember(grid: Grid, runs: dict[Path, list[str]]) -> None:
    file = grid.out / GRID
    known = read_record(file) | {
        str(run.relative_to(grid.out)): asked for run, asked in runs.items()
    }
    write_whole(str(file), (json.dumps(known, indent=1) + "\n").encode())


def _show_status(out: Path) -> int:
    known = read_record(out / GRID)
    if not known:
        raise UserError(f"there is no grid in {out}: name its directory by out=")
    runs = [out / name for name in known]
    sys.stdout.write(status_table(runs, out))
    return 0 if all(state_of(run) == "finished" for run in runs) else 1


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for _each in (signal.SIGTERM, signal.SIGHUP):
        # nohup's wish is kept
        if signal.getsignal(_each) != signal.SIG_IGN:
            signal.signal(_each, _interrupt)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
