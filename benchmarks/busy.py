"""A training step beside other programs, by how OpenMP's threads wait: one table.

python -m benchmarks.busy --help
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.report import Measurements, Table, measure, parser, shown
from fairseq_csp.flags import positive

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
WAITS: dict[str, dict[str, str]] = {
    "as OpenMP has it": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=100": {"GOMP_SPINCOUNT": "100"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
}
MEGA = {"arch": "mega_lra_imdb", "options": {"attention": "csp"}, "dtype": "float32"}


def main(arguments: list[str]) -> None:
    """Run the command line interface.

    Args:
        arguments: those after the module's name.

    Raises:
        UserError: ``--only`` matches nothing.
    """
    args = _parse(arguments)
    shape = {"batch": args.batch, "length": args.length, "naive": False, "products": False}
    counts = [0, *args.busy]

    def rows_of(name: str, measurements: Measurements) -> list[dict]:
        seconds = []
        for count in counts:
            with _environment(WAITS[name]), _busy(count):
                seconds.append(measurements.best({name: MEGA | shape})[name].get("mean_seconds"))
        return [{"name": name, "seconds": seconds}]

    columns = ["seconds a step", "alone", *(f"beside {count}" for count in args.busy)]
    table = Table(columns, lambda row: [row["name"], *(shown(s, ".3f") for s in row["seconds"])])
    measure("benchmarks.step", {name: name for name in WAITS}, rows_of, table, args)


def _parse(arguments: list[str]) -> argparse.Namespace:
    made = parser(__doc__.partition(":")[0])
    made.add_argument("--batch", type=positive, default=4, help="number of rows")
    made.add_argument("--length", type=positive, default=1024, help="positions of a row")
    help_ = "how many busy processes to measure beside"
    made.add_argument("--busy", type=positive, nargs="+", default=[2, 4], help=help_)
    return made.parse_args(arguments)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.pop(name, None) for name in VARIABLES}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in VARIABLES:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Keep processes on the cores that compute without pause."""
    loop = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(loop) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
