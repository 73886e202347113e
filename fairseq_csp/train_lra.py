"""What ``train_lra.sh`` and ``train_vit.sh`` run once the package is there: prepare, train, test.

python -m fairseq_csp.train_lra model_name=mega dataset_name=listops preset=demo
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fairseq_csp import checkpoints, supervise
from fairseq_csp.datasets import DATASETS, IMAGE_SETS, RAW_DIRECTORY
from fairseq_csp.errors import UserError
from fairseq_csp.files import write_whole
from fairseq_csp.ops import mkl
from fairseq_csp.processor import has_bfloat16
from fairseq_csp.recipes.arguments import Choice, Known, benchmark_of, parse_arguments
from fairseq_csp.recipes.benchmarks import BENCHMARKS
from fairseq_csp.recipes.flags import ROOT
from fairseq_csp.recipes.recipe import LAST_DATA, Recipe, Stage
from fairseq_csp.report.records import read_record
from preprocess.sources import find_raw

logger = logging.getLogger("train_lra")
USER_DIR = str(ROOT / "fairseq_csp")
# how a run ended, and how it was started, written into its directory
RESULT, COMMANDS = "result.json", "command.jsonl"
# where the stages before the last one stand in it
STAGES = "stages"
# flags that change nothing of what is trained
_OF_NO_EFFECT = {
    *("--save-dir", "--tensorboard-logdir", "--log-file", "--log-format", "--log-interval"),
    *("--num-workers", "--no-progress-bar", "--finetune-from-model"),
    *("--save-interval-updates", "--keep-interval-updates", "--no-epoch-checkpoints"),
}


@dataclass(frozen=True)
class Training:
    """One fairseq-train that a run consists of.

    Attributes:
        stage: what of the recipe it trains.
        data: directory of its data.
        values: its flags, those that name files of the run left out.
    """

    stage: Stage
    data: Path
    values: list[str]


def main(arguments: list[str]) -> int:
    """Prepare the data, train, and test the best checkpoint.

    Args:
        arguments: those of ``train_lra.sh``.

    Returns:
        The exit status: that of the first step that failed, else 0.

    Raises:
        UserError: something that was asked for cannot be done.
    """
    try:
        choice = choice_of(arguments)
    except ValueError as error:
        script = BENCHMARKS[benchmark_of(arguments)].script
        sys.stderr.write(f"{script}: {error} (--help tells more)\n")
        return 2
    gpus = _gpus(choice)
    trainings = _trainings(choice, gpus)
    status = prepare_data(choice, trainings)
    if status:
        return status
    if not gpus and choice.preset != "demo":
        _say_how_long(trainings)
    last = trainings[-1]
    if _last(last.values, "--valid-subset") == "test":
        logger.info(
            "The best epoch is chosen on the test images, as in the published code: the accuracy "
            "that is reported is the highest of all epochs, not one on images unseen until then."
        )
    run = _run_directory(choice, last.values)
    commands = _commands(trainings, run)
    with _reserved(run) as record:
        changed = _changed(run, commands)
        _write_down(record, arguments, commands, changed)
        try:
            (run / RESULT).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{run / RESULT} cannot be removed ({error.strerror})") from None
        status = _train(run, commands)
        if status:
            return status
        status = evaluate(
            last.data,
            run,
            _last(last.values, "--batch-size") or "32",
            "--cpu" in last.values,
            user_dir=_user_dir(choice),
        )
    if not status:
        _say_result(last.data, run, last.values)
    return status


def prepare_data(choice: Choice, trainings: Sequence[Training] | None = None) -> int:
    """Prepare the data of a run where it is not there.

    Args:
        choice: what was asked for.
        trainings: those of the run; None: those that are asked for.

    Returns:
        The exit status of the preparation that failed, else 0.
    """
    found = _trainings(choice, 0) if trainings is None else trainings
    # the others may take the dictionaries of the last one's data
    for training in (found[-1], *found[:-1]):
        status = 0 if training.data.exists() else _prepare(choice, training, found[-1].data)
        if status:
            return status
    return 0


def choice_of(arguments: Sequence[str]) -> Choice:
    """Read the arguments; with a user directory, by the names that it registers.

    Args:
        arguments: those of ``train_lra.sh``.

    Raises:
        ValueError: as :func:`parse_arguments`.
    """
    choice = parse_arguments(arguments)
    if choice.user_dir is None:
        return choice
    from fairseq import utils

    # this package is imported already, so that the directory's import of it registers nothing
    import fairseq_csp.plugin  # noqa: F401

    utils.import_user_module(Namespace(user_dir=_user_dir(choice)))
    from fairseq_csp.models.family import FAMILY_REGISTRY
    from fairseq_csp.modules.attention import ATTENTION_REGISTRY

    benchmark = BENCHMARKS[choice.benchmark]
    models = FAMILY_REGISTRY if choice.benchmark == "lra" else benchmark.models()
    names = (models, ATTENTION_REGISTRY, benchmark.datasets())
    return parse_arguments(arguments, Known(*(tuple(sorted(known)) for known in names)))


def _user_dir(choice: Choice) -> str:
    return str(Path(choice.user_dir).absolute()) if choice.user_dir else USER_DIR


def _gpus(choice: Choice) -> int:
    there = torch.cuda.device_count()
    if choice.gpus is None:
        return min(1, there)
    if choice.gpus > there:
        raise UserError(f"gpus is {choice.gpus}, but {there} GPUs are visible here")
    return choice.gpus


def _trainings(choice: Choice, gpus: int) -> list[Training]:
    """Return the trainings of a run, most often one."""
    return [
        Training(stage, _data_directory(choice, stage), _training_flags(choice, gpus, stage.recipe))
        for stage in BENCHMARKS[choice.benchmark].stages(
            choice.model_name, choice.dataset_name, choice.preset
        )
    ]


def _data_directory(choice: Choice, stage: Stage) -> Path:
    # absolute, so that no name can be taken for a flag
    data = ROOT / "lra_data" / choice.data_name
    if choice.data_dir:
        data = Path(choice.data_dir).absolute()
    return data.with_name(f"{data.name}-{stage.data}") if stage.data else data


def _prepare(choice: Choice, training: Training, last: Path) -> int:
    logger.info(f"{training.data} is not there: preparing it")
    command = [sys.executable, "-m", "preprocess"]
    if choice.user_dir:
        command += ["--user-dir", _user_dir(choice)]
    command += [choice.data_set, "--out", str(training.data)]
    command += [part.replace(LAST_DATA, str(last)) for part in training.stage.preparation]
    if choice.preset == "demo":
        command.append("--demo")
    elif _download(choice):
        command.append("--download")
    return supervise.run(command, cwd=ROOT).returncode


def _download(choice: Choice) -> bool:
    """Tell whether to download the raw file of a data set; ask where nobody has said."""
    data_set = (DATASETS | IMAGE_SETS).get(choice.data_set)
    if data_set is None or data_set.download is None or data_set.generated:
        return False
    if choice.download is not None or find_raw(data_set, ROOT / RAW_DIRECTORY):
        return bool(choice.download)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    release = data_set.download
    sys.stderr.write(f"Download {release.file} ({release.size}) from {release.address}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _training_flags(choice: Choice, gpus: int, recipe: Recipe) -> list[str]:
    values = ["--user-dir", _user_dir(choice)]
    values += BENCHMARKS[choice.benchmark].flags(
        choice.model_name, choice.dataset_name, recipe, choice.attention
    )
    values += ["--seed", str(choice.seed)]
    values += ["--distributed-world-size", str(gpus)] if gpus else ["--cpu"]
    if recipe.bfloat16 and not gpus and has_bfloat16():
        values.append("--bf16")
    if not sys.stderr.isatty():
        values += ["--log-format", "simple"]
    if choice.preset == "demo":
        values += ["--log-interval", "20"]
    if gpus > 1:
        values += _shared_out(recipe, gpus)
    return [*values, *choice.extra]


def _shared_out(recipe: Recipe, gpus: int) -> list[str]:
    """Keep the examples of an update what they are on one GPU."""
    if recipe.accumulate % gpus == 0:
        return ["--update-freq", str(recipe.accumulate // gpus)]
    if recipe.batch % gpus == 0:
        return ["--batch-size", str(recipe.batch // gpus)]
    raise UserError(
        f"gpus is {gpus}; the update of {recipe.batch} x {recipe.accumulate} examples cannot be "
        "shared out evenly: choose a divisor of either"
    )


def _say_how_long(trainings: Sequence[Training]) -> None:
    days = 0.0
    for training in trainings:
        command = [sys.executable, "-m", "fairseq_csp.estimate", str(training.data)]
        answer = supervise.run([*command, *training.values], cwd=ROOT, stdout=subprocess.PIPE)
        if answer.returncode:
            # what is wrong with the flags has been said
            raise SystemExit(answer.returncode)
        estimate = json.loads(answer.stdout.splitlines()[-1])
        seconds, updates = estimate["seconds_per_update"], estimate["updates"]
        days += seconds * updates / 86400
    length = f"{days:,.1f} days" if days >= 1 else f"{24 * days:,.1f} hours"
    logger.info(
        f"No GPU: one update takes about {seconds:.1f} s here, the whole schedule of {updates:,} "
        f"updates{' and its earlier stages' if len(trainings) > 1 else ''} about {length}. "
        "preset=demo takes minutes."
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
    for kind, names in (
        ("file", (COMMANDS, RESULT, "train.log", "checkpoint_last.pt", "checkpoint_best.pt")),
        ("directory", ("tensorboard", STAGES)),
    ):
        for path in (run / name for name in names):
            if path.exists() and not (path.is_file() if kind == "file" else path.is_dir()):
                raise UserError(f"{path} is no {kind}: remove it, or name another save_dir")
    return run


def _commands(trainings: Sequence[Training], run: Path) -> dict[Path, list[str]]:
    """Return the fairseq-train of each training by its directory, the run's own at the end."""
    commands: dict[Path, list[str]] = {}
    for number, training in enumerate(trainings, start=1):
        directory = run
        if number < len(trainings):
            directory = run / STAGES / f"{number}-{training.stage.name}"
        command = [
            _tool("fairseq-train"),
            str(training.data),
            *("--save-dir", str(directory)),
            *("--tensorboard-logdir", str(directory / "tensorboard")),
            *("--log-file", str(directory / "train.log")),
            *training.values,
        ]
        if commands:
            earlier = list(commands)[-1]
            command += ["--finetune-from-model", str(earlier / "checkpoint_best.pt")]
        commands[directory] = command
    return commands


def _train(run: Path, commands: dict[Path, list[str]]) -> int:
    """Train each stage that is not finished; return the exit status of the last one run."""
    for directory, command in commands.items():
        if directory != run:
            if read_record(directory / RESULT).get("exit_status") == 0:
                logger.info(f"{directory} is finished")
                continue
            directory.mkdir(parents=True, exist_ok=True)
        logger.info(shlex.join(command))
        status = supervise.run(command).returncode
        if status or directory != run:
            _write_result(directory, {"exit_status": status})
        if status:
            return status
    return 0


def _changed(run: Path, commands: dict[Path, list[str]]) -> dict[str, list[str | None]]:
    """Return the flags by which a run differs from its last start: old and new values.

    Raises:
        UserError: the run is finished, and what differs would not be trained: what is reported
            would be the result of other flags.
    """
    try:
        # one that was just made is empty
        record = read_record(run / COMMANDS) if (run / COMMANDS).stat().st_size else {}
    except UserError as error:
        logger.warning(f"how {run} was started before is not known: {error}")
        record = {}
    before = [shlex.split(command) for command in record.get("stages", [])]
    before.append(shlex.split(record["command"]) if record.get("command") else [])
    changed: dict[str, list[str | None]] = {}
    if not before[-1]:
        return changed
    old, new = _flags_of(before), _flags_of(list(commands.values()))
    for flag in sorted(old.keys() | new.keys()):
        if old.get(flag) != new.get(flag):
            changed[flag] = [old.get(flag), new.get(flag)]
    if not changed:
        return changed
    told = ", ".join(f"{flag} was {_told(a)} and is {_told(b)}" for flag, (a, b) in changed.items())
    further = float(new.get("--max-update") or 0) > float(old.get("--max-update") or 0)
    if not further and _is_trained(run, old):
        raise UserError(
            f"{run} is finished, and was trained with other flags: {told}; name another save_dir, "
            "or a larger --max-update to train it further"
        )
    logger.warning(f"{run} goes on with other flags than before: {told}")
    return changed


def _is_trained(run: Path, flags: dict[str, str]) -> bool:
    """Tell whether a run has had the updates of these flags, tested or not."""
    if read_record(run / RESULT).get("exit_status") == 0:
        return True
    last = run / "checkpoint_last.pt"
    if not last.exists():
        return False
    updates = checkpoints.load(last)["optimizer_history"][-1]["num_updates"]
    return updates >= float(flags["--max-update"])


def _flags_of(commands: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return what has an effect in commands of fairseq-train, by flag, as the last one says it."""
    found: dict[str, list[str]] = {}
    for number, command in enumerate(commands, start=-len(commands)):
        # those of the run itself by their own names
        stage = "" if number == -1 else f" of stage {number + len(commands) + 1}"
        key = f"data{stage}"
        found[key] = []
        # the first is the program
        for part in command[1:]:
            if re.match(r"--[a-z]", part):
                flag, equals, value = part.partition("=")
                key = flag + stage
                found[key] = [value] if equals else []
            else:
                found[key].append(part)
    return {
        key: " ".join(values)
        for key, values in found.items()
        if key.partition(" ")[0] not in _OF_NO_EFFECT
    }


def _told(value: str | None) -> str:
    return "not given" if value is None else value or "given"


@contextlib.contextmanager
def _reserved(run: Path) -> Iterator[int]:
    """Open the record of a run; meanwhile no other process may train in its directory."""
    file = run / COMMANDS
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror})") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError:
        raise UserError(f"another process trains in {run}: wait for it, or end it") from None
    finally:
        os.close(descriptor)


def _write_down(
    record: int,
    arguments: Sequence[str],
    commands: dict[Path, list[str]],
    changed: dict[str, Any],
) -> None:
    """Write down, a line each time a run is started or resumed, what it is made with."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        revision = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:
        revision = ""
    # fairseq itself, or a repaired one
    fairseq = metadata.packages_distributions()["fairseq"][0]
    *earlier, command = commands.values()
    made_with = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "arguments": list(arguments),
        "command": shlex.join(command),
        **({"stages": [shlex.join(stage) for stage in earlier]} if earlier else {}),
        **({"changed": changed} if changed else {}),
        "seed": int(_last(command, "--seed")),
        "revision": revision or None,
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", fairseq)},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "preload": os.environ.get(mkl.VARIABLE) or None,
        "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
    }
    line = (json.dumps(made_with) + "\n").encode()
    length = os.fstat(record).st_size
    try:
        if os.write(record, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(record, length)
        raise UserError(f"{COMMANDS} could not be written ({error.strerror}): make room") from None


def evaluate(data: Path, run: Path, batch_size: str, cpu: bool, *, user_dir: str = USER_DIR) -> int:
    """Test the best checkpoint of a run through fairseq-validate and keep the result beside it.

    Args:
        data: directory of the prepared data.
        run: directory of the run.
        batch_size: examples of a batch.
        cpu: leave GPUs alone.
        user_dir: the user directory that it was trained with.

    Returns:
        The exit status of fairseq-validate.

    Raises:
        UserError: the run has no best checkpoint.
    """
    best = run / "checkpoint_best.pt"
    if not best.exists():
        raise UserError(f"{best} is not there: the training validated no checkpoint")
    status, numbers = tested(data, best, batch_size, cpu, user_dir=user_dir)
    if not status:
        _write_result(run, {"exit_status": 0, "checkpoint": best.name, **numbers})
    return status


def tested(
    data: Path, checkpoint: Path, batch_size: str, cpu: bool, *, user_dir: str = USER_DIR
) -> tuple[int, dict[str, Any]]:
    """Test a checkpoint through fairseq-validate.

    Args:
        data: directory of the prepared data.
        checkpoint: its path.
        batch_size: examples of a batch.
        cpu: leave GPUs alone.
        user_dir: the user directory that it was trained with.

    Returns:
        The exit status of fairseq-validate, and where it is 0 ``loss`` in bits, ``accuracy`` in
        percent and the number of ``examples``.
    """
    command = [
        _tool("fairseq-validate"),
        str(data),
        *("--user-dir", user_dir),
        *("--path", str(checkpoint)),
        *("--valid-subset", "test"),
        *("--batch-size", batch_size),
        *("--log-format", "json"),
    ]
    if cpu:
        command.append("--cpu")
    logger.info(shlex.join(command))
    answer = supervise.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = answer.stdout + answer.stderr
    results = re.findall(r"^.*\| INFO \| test \| (\{.*\})$", log, flags=re.MULTILINE)
    if answer.returncode or not results:
        sys.stderr.write(log)
        return answer.returncode or 1, {}
    numbers = json.loads(results[-1])
    return 0, {
        "loss": float(numbers["test_loss"]),
        "accuracy": float(numbers["test_accuracy"]),
        "examples": round(float(numbers["test_bsz"])),
    }


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
    os.environ |= mkl.environment()
    try:
        status = main(sys.argv[1:])
        # as a shell tells of a command that a signal killed
        sys.exit(128 - status if status < 0 else status)
    except KeyboardInterrupt:
        sys.exit(130)
