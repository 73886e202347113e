"""What ``train_lra.sh`` runs once the package is there: prepare, train, test.

python -m fairseq_csp.train_lra model_name=mega dataset_name=listops preset=demo
"""

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TextIO

import torch

from fairseq_csp.errors import UserError
from fairseq_csp.files import write_whole
from fairseq_csp.recipes import ROOT, Choice, flags, parse_words, recipe

logger = logging.getLogger("train_lra")
USER_DIR = str(ROOT / "fairseq_csp")
# how a run ended, written into its directory
RESULT = "result.json"


def main(words: list[str]) -> int:
    """Prepare the data, train, and test the best checkpoint.

    Args:
        words: those of ``train_lra.sh``.

    Returns:
        The exit status: that of the first step that failed, else 0.

    Raises:
        UserError: something that was asked for cannot be done.
    """
    try:
        choice = parse_words(words)
    except ValueError as error:
        sys.stderr.write(f"train_lra.sh: {error} (--help tells more)\n")
        return 2
    gpus = _gpus(choice)
    data = _data_directory(choice)
    if not data.exists():
        status = _prepare(choice, data)
        if status:
            return status
    values = _training_flags(choice, gpus)
    if not gpus and choice.preset != "demo":
        _say_how_long(data, values)
    run = _run_directory(choice, values)
    command = [
        _tool("fairseq-train"),
        str(data),
        *("--save-dir", str(run)),
        *("--tensorboard-logdir", str(run / "tensorboard")),
        *("--log-file", str(run / "train.log")),
        *values,
    ]
    logger.info(shlex.join(command))
    with _reserved(run) as record:
        _write_down(record, words, command)
        (run / RESULT).unlink(missing_ok=True)
        status = subprocess.run(command, preexec_fn=_end_with_parent).returncode
        if status:
            _write_result(run, {"exit_status": status})
            return status
        status = evaluate(data, run, _last(values, "--batch-size") or "32", "--cpu" in values)
    if not status:
        _say_result(data, run, values)
    return status


def _gpus(choice: Choice) -> int:
    there = torch.cuda.device_count()
    if choice.gpus is None:
        return min(1, there)
    if choice.gpus > there:
        raise UserError(f"gpus is {choice.gpus}, but {there} GPUs are visible here")
    return choice.gpus


def _data_directory(choice: Choice) -> Path:
    # absolute, so that no name can be taken for a flag
    if choice.data_dir:
        return Path(choice.data_dir).absolute()
    return ROOT / "lra_data" / choice.data_name


def _prepare(choice: Choice, data: Path) -> int:
    logger.info(f"{data} is not there: preparing it")
    command = [sys.executable, "-m", "preprocess", choice.dataset_name, "--out", str(data)]
    if choice.preset == "demo":
        command.append("--demo")
    return subprocess.run(command, cwd=ROOT, preexec_fn=_end_with_parent).returncode


def _training_flags(choice: Choice, gpus: int) -> list[str]:
    values = ["--user-dir", USER_DIR]
    values += flags(choice.model_name, choice.dataset_name, choice.preset, choice.attention)
    values += ["--seed", str(choice.seed)]
    values += ["--distributed-world-size", str(gpus)] if gpus else ["--cpu"]
    if not sys.stderr.isatty():
        values += ["--log-format", "simple"]
    if choice.preset == "demo":
        values += ["--log-interval", "20"]
    if gpus > 1:
        values += _shared_out(choice, gpus)
    return [*values, *choice.extra]


def _shared_out(choice: Choice, gpus: int) -> list[str]:
    """Keep the examples of an update what they are on one GPU."""
    values = recipe(choice.model_name, choice.dataset_name, choice.preset)
    if values.accumulate % gpus == 0:
        return ["--update-freq", str(values.accumulate // gpus)]
    if values.batch % gpus == 0:
        return ["--batch-size", str(values.batch // gpus)]
    raise UserError(
        f"gpus is {gpus}; the update of {values.batch} x {values.accumulate} examples cannot be "
        "shared out evenly: choose a divisor of either"
    )


def _say_how_long(data: Path, values: list[str]) -> None:
    command = [sys.executable, "-m", "fairseq_csp.estimate", str(data), *values]
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if answer.returncode:
        # what is wrong with the flags has been said
        raise SystemExit(answer.returncode)
    estimate = json.loads(answer.stdout.splitlines()[-1])
    seconds, updates = estimate["seconds_per_update"], estimate["updates"]
    logger.info(
        f"No GPU: one update takes about {seconds:.1f} s here, the whole schedule of {updates:,} "
        f"updates about {seconds * updates / 86400:,.1f} days. preset=demo takes minutes."
    )


def _run_directory(choice: Choice, values: list[str]) -> Path:
    if choice.save_dir:
        run = Path(choice.save_dir).absolute()
    else:
        arch = _last(values, "--arch")
        attention = _last(values, "--attention") or "default"
        cell = ROOT / "outputs" / choice.data_name / f"{arch}-{attention}"
        earlier = sorted(cell.glob("*/")) if choice.resume else []
        if choice.resume and not earlier:
            raise UserError(f"resume=yes, but there is no run in {cell}")
        run = earlier[-1] if earlier else cell / time.strftime("%Y-%m-%d_%H-%M-%S")
    if (run / "checkpoint_last.pt").exists():
        logger.info(f"resuming {run}")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run} cannot be made ({error.strerror}): name another place") from None
    return run


@contextlib.contextmanager
def _reserved(run: Path) -> Iterator[TextIO]:
    """Open the record of a run; meanwhile no other process may train in its directory."""
    with open(run / "command.jsonl", "a", encoding="utf-8") as record:
        try:
            fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process trains in {run}: wait for it, or end it") from None
        yield record


_libc = ctypes.CDLL(None)


def _end_with_parent() -> None:
    """Have Linux end this process when its parent is killed, lest two write to one directory."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        _libc.prctl(set_parent_death_signal, signal.SIGKILL)


def _write_down(record: TextIO, words: list[str], command: list[str]) -> None:
    """Write down, a line each time a run is started or resumed, what it is made with."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        revision = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:
        revision = ""
    # fairseq itself, or a repaired one
    fairseq = metadata.packages_distributions()["fairseq"][0]
    made_with = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "words": words,
        "command": shlex.join(command),
        "seed": int(_last(command, "--seed")),
        "revision": revision or None,
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", fairseq)},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
    }
    record.write(json.dumps(made_with) + "\n")
    record.flush()


def evaluate(data: Path, run: Path, batch_size: str, cpu: bool) -> int:
    """Test the best checkpoint of a run through fairseq-validate and keep the result beside it.

    Args:
        data: directory of the prepared data.
        run: directory of the run.
        batch_size: examples of a batch.
        cpu: leave GPUs alone.

    Returns:
        The exit status of fairseq-validate.

    Raises:
        UserError: the run has no best checkpoint.
    """
    best = run / "checkpoint_best.pt"
    if not best.exists():
        raise UserError(f"{best} is not there: the training validated no checkpoint")
    command = [
        _tool("fairseq-validate"),
        str(data),
        *("--user-dir", USER_DIR),
        *("--path", str(best)),
        *("--valid-subset", "test"),
        *("--batch-size", batch_size),
        *("--log-format", "json"),
    ]
    if cpu:
        command.append("--cpu")
    logger.info(shlex.join(command))
    answer = subprocess.run(command, capture_output=True, text=True)
    log = answer.stdout + answer.stderr
    results = re.findall(r"^.*\| INFO \| test \| (\{.*\})$", log, flags=re.MULTILINE)
    if answer.returncode or not results:
        sys.stderr.write(log)
        return answer.returncode or 1
    numbers = json.loads(results[-1])
    result = {
        "exit_status": 0,
        "checkpoint": best.name,
        "loss": float(numbers["test_loss"]),
        "accuracy": float(numbers["test_accuracy"]),
        "examples": round(float(numbers["test_bsz"])),
    }
    _write_result(run, result)
    return 0


def _write_result(run: Path, result: dict) -> None:
    write_whole(str(run / RESULT), (json.dumps(result) + "\n").encode())


def _say_result(data: Path, run: Path, values: list[str]) -> None:
    result = json.loads((run / RESULT).read_text(encoding="utf-8"))
    fields = [
        data.name,
        _last(values, "--arch"),
        _last(values, "--attention") or "default attention",
        f"test accuracy {result['accuracy']:.3f} %",
        f"{result['examples']} examples",
        str(run / result["checkpoint"]),
    ]
    sys.stdout.write(" | ".join(fields) + "\n")


def _last(values: list[str], flag: str) -> str | None:
    """Return what a flag is set to, by its last occurrence, as argparse does."""
    found = None
    for word, following in zip(values, [*values[1:], ""], strict=True):
        if word == flag:
            found = following
        elif word.startswith(flag + "="):
            found = word.partition("=")[2]
    return found


def _tool(name: str) -> str:
    """Return the path of a command that was installed with this interpreter."""
    return str(Path(sys.executable).parent / name)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
