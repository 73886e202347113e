"""What the benchmark commands share: their options, measuring processes and tables."""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fairseq_csp.errors import UserError
from fairseq_csp.flags import positive
from fairseq_csp.ops import mkl
from fairseq_csp.ops.kernels import VARIABLE, chosen
from fairseq_csp.output import unwritable
from fairseq_csp.processor import has_bfloat16

ROOT = Path(__file__).resolve().parent.parent
GIGABYTE = 1 << 30
# memory that is left to the rest of the machine
LEFT_FREE = 4


def threads_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the option that all benchmark commands have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    threads = len(os.sched_getaffinity(0))
    made.add_argument("--threads", type=positive, default=threads, help="threads of the CPU")
    return made


def device_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the options of a command that can measure on a GPU."""
    made = threads_parser(description)
    devices = ("auto", "cpu", "cuda")
    made.add_argument("--device", choices=devices, default="auto", help="auto: a GPU if any")
    return made


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the options of a command that measures in processes of their own."""
    made = device_parser(description)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIGABYTE
    add = made.add_argument
    add("--rounds", type=positive, default=3, help="processes for each number; the best counts")
    add("--budget", type=float, default=5, help="seconds to repeat a call in one process")
    add("--memory", type=float, default=max(1, int(total) - LEFT_FREE), help="limit in GB (CPU)")
    add("--time-limit", type=float, default=600, help="seconds that one process may take")
    add("--only", default="", metavar="PATTERN", help="measure rows whose name matches this")
    add("--json", type=new_file, metavar="FILE", help="write the numbers to this file too")
    return made


def measured_dtypes() -> tuple[str, ...]:
    """Return the dtypes to measure models in; bfloat16 is left out, with a word, without a unit."""
    if has_bfloat16() or torch.cuda.is_available():
        return "float32", "bfloat16"
    sys.stderr.write("bfloat16 is left out: this processor has no instructions for it\n")
    return ("float32",)


def new_directory(text: str) -> Path:
    """Make the directory that an option names, where it is missing; a ``type`` for argparse.

    Raises:
        ArgumentTypeError: no file can be written there.
    """
    directory = Path(text)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(unwritable(directory, error)) from None
    return directory


def new_file(text: str) -> Path:
    """Make the directory of the file that an option names; a ``type`` for argparse.

    Raises:
        ArgumentTypeError: the file cannot be written.
    """
    file = Path(text)
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{file} is a directory: name a file in it")
    new_directory(str(file.parent))
    return file


class Measurements:
    """Runs measuring processes, one at a time, and keeps the best of their answers.

    Args:
        module: what such a process runs (``python -m MODULE SPECIFICATION``).
        args: the command's options.
    """

    def __init__(self, module: str, args: argparse.Namespace) -> None:
        self.module = module
        self.args = args
        self.device = None

    def best(self, specs: dict[str, dict]) -> dict[str, dict]:
        """Measure alternately, in several rounds.

        Args:
            specs: what to measure, each under its name.

        Returns:
            For each name the answer with the least seconds, with the least peak memory of any
            round; ``{"problem": why}`` where there is none.
        """
        answers: dict[str, list[dict]] = {name: [] for name in specs}
        for _ in range(self.args.rounds):
            for name, spec in specs.items():
                if not any("problem" in answer for answer in answers[name]):
                    answers[name].append(self._run(spec))
        return {name: _best(answers[name]) for name in specs}

    def _run(self, spec: dict) -> dict:
        shared = ("device", "threads", "memory", "budget")
        spec = spec | {name: getattr(self.args, name) for name in shared}
        kernels = spec.pop("kernels", None) or chosen()
        command = [sys.executable, "-m", self.module, json.dumps(spec)]
        # as train_lra.sh trains: tensors in huge pages, all instructions in matrix products
        threads = str(self.args.threads)
        environment = os.environ | {
            **mkl.environment(),
            "THP_MEM_ALLOC_ENABLE": "1",
            "OMP_NUM_THREADS": threads,
            VARIABLE: kernels,
        }
        limit = self.args.time_limit
        try:
            run = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return {"problem": f"takes more than {limit:g} s"}
        if run.returncode < 0:
            name = signal.Signals(-run.returncode).name
            return {"problem": f"ended by {name} (memory limit {self.args.memory:g} GB)"}
        if run.returncode:
            sys.stderr.write(run.stderr)
            return {"problem": f"failed: {run.stderr.strip().splitlines()[-1]}"}
        answer = json.loads(run.stdout.splitlines()[-1])
        self.device = answer.pop("device")
        return answer

    def conditions(self) -> dict[str, object]:
        """Return what the numbers depend on."""
        return {
            "date": date.today().isoformat(),
            "machine": _processor(),
            "device": self.device,
            "kernels": chosen(),
            "threads": self.args.threads,
            "torch": version("torch"),
            "python": platform.python_version(),
            "memory_limit_gb": self.args.memory,
            "rounds": self.args.rounds,
            "preload": os.environ.get(mkl.VARIABLE, mkl.environment().get(mkl.VARIABLE)) or None,
            "allocator": "huge pages, freed memory kept, as by train_lra.sh; for all columns",
        }


@dataclass(frozen=True)
class Table:
    """A table whose rows are printed as they are measured.

    Attributes:
        columns: its heading.
        cells: gives the cells of a row.
        later: a second table of the same rows, printed when all are measured; or None.
    """

    columns: list[str]
    cells: Callable[[dict], list[str]]
    later: Callable[[list[dict]], str] | None = None


def measure(
    module: str,
    works: dict[str, Any],
    rows_of: Callable[[Any, Measurements], list[dict]],
    table: Table,
    args: argparse.Namespace,
) -> list[dict]:
    """Measure the works that ``--only`` chooses; print and write rows as they are measured.

    The table comes first, then the conditions. ``--json`` has at any time what is measured so far.

    Args:
        module: what a measuring process runs.
        works: what there is to measure, by name.
        rows_of: measures one of them and gives rows of the table.
        table: how rows are printed.
        args: the command's options.

    Returns:
        The rows.

    Raises:
        UserError: ``--only`` matches nothing.
    """
    chosen_works = matching(list(works), args.only)
    measurements = Measurements(module, args)
    rows: list[dict] = []
    sys.stdout.write(markdown(table.columns, []))
    for number, name in enumerate(chosen_works, 1):
        sys.stderr.write(f"{number} of {len(chosen_works)}: {name}\n")
        for row in rows_of(works[name], measurements):
            rows.append(row)
            sys.stdout.write(markdown_line(table.cells(row)))
            sys.stdout.flush()
        if args.json is not None:
            numbers = {"conditions": measurements.conditions(), "rows": rows}
            args.json.write_text(json.dumps(numbers, indent=1) + "\n")
    if table.later is not None:
        sys.stdout.write("\n" + table.later(rows))
    sys.stdout.write("\n")
    for name, value in measurements.conditions().items():
        sys.stdout.write(f"- {name.replace('_', ' ')}: {value}\n")
    return rows


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; all columns but the first are numbers."""
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "".join(map(markdown_line, lines))


def markdown_line(cells: list[str]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cells)} |\n"


def matching(names: list[str], pattern: str) -> list[str]:
    """Return the names in which a pattern occurs.

    Raises:
        UserError: there is none, and the message lists the names; or it is no regular expression.
    """
    try:
        chosen = [name for name in names if re.search(pattern, name)]
    except re.error as error:
        raise UserError(f"--only {pattern!r} is no regular expression: {error}") from None
    if not chosen:
        raise UserError(f"--only {pattern!r} matches no row; there are:\n" + "\n".join(names))
    return chosen


def ratio(over: dict, over_key: str, under: dict, under_key: str) -> float | None:
    """Return one answer's number over another's; None where one of them has none."""
    if over_key not in over or not under.get(under_key):
        return None
    return over[over_key] / under[under_key]


def shown(number: float | None, pattern: str) -> str:
    """Format a number, and the lack of one."""
    return "" if number is None else format(number, pattern)


def _best(answers: list[dict]) -> dict:
    measured = [answer for answer in answers if "problem" not in answer]
    if not measured:
        return answers[-1]
    fastest = min(measured, key=lambda answer: answer["seconds"])
    return fastest | {"peak_bytes": min(answer["peak_bytes"] for answer in measured)}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()}, {os.cpu_count()} cores"
