"""The operators beside their direct formulas and a plain copy: one table.

python -m benchmarks.op --help
"""

import sys
from dataclasses import dataclass, field

from benchmarks.report import Measurements, Table, measure, parser, ratio, shown

COLUMNS = [
    "forward and backward",
    "ms",
    "reference ms",
    "naive ms",
    "naive / ours",
    "copy ms",
    "times a copy",
    "peak in copies",
    "naive peak in copies",
]


@dataclass(frozen=True)
class Work:
    """An operator on values of one shape.

    Attributes:
        operator: its name in ``benchmarks.operators``.
        shape: (batch, channels, positions).
        options: of the operator.
    """

    operator: str
    shape: tuple[int, int, int]
    options: dict[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the work, for ``--only``."""
        options = "".join(f", {key} {value}" for key, value in self.options.items())
        batch, channels, positions = self.shape
        return f"{self.operator}{options}, {batch} x {positions} x {channels}"

    def specs(self) -> dict[str, dict]:
        """Return what the measuring processes are told."""
        shared = {"operator": self.operator, "shape": self.shape, "options": self.options}
        return {
            "ours": shared | {"naive": False},
            "reference": shared | {"naive": False, "kernels": "reference"},
            "naive": shared | {"naive": True},
        }


# of the layers of the imdb, the cifar10 and the pf128 variant
VALUES = ((4, 256, 4000), (8, 320, 1024), (1, 128, 16384))
WORKS = (
    *(Work("csp", shape) for shape in VALUES),
    Work("csp function", VALUES[0]),
    Work("moving average", (1, 128, 4000)),
    Work("moving average", (4, 128, 4000)),
    Work("moving average", (4, 128, 4000), {"truncation": 1024}),
    Work("moving average", (1, 128, 16384)),
    Work("dropout", VALUES[0]),
    Work("scale norm", (4, 128, 4000)),
    Work("layer norm", (4, 128, 4000)),
)
TINY = tuple(Work(name, (2, 8, 64)) for name in dict.fromkeys(work.operator for work in WORKS))


def measured_rows(work: Work, measurements: Measurements) -> list[dict]:
    """Measure one piece of work.

    Returns:
        Its one row of the table; the keys are told in ``docs/speed.md``.
    """
    answers = measurements.best(work.specs())
    ours, naive = answers["ours"], answers["naive"]
    row = {
        "name": work.name,
        "operator": work.operator,
        "shape": work.shape,
        "options": work.options,
        "ours": ours,
        "reference": answers["reference"],
        "naive": naive,
        "speed_ratio": ratio(naive, "seconds", ours, "seconds"),
        "kernel_ratio": ratio(answers["reference"], "seconds", ours, "seconds"),
        "copy_ratio": ratio(ours, "seconds", ours, "copy_seconds"),
    }
    return [row]


def _cells(row: dict) -> list[str]:
    ours, naive = row["ours"], row["naive"]
    return [
        row["name"],
        *(_milliseconds(answer) for answer in (ours, row["reference"], naive)),
        shown(row["speed_ratio"], ".2f"),
        _milliseconds(ours, "copy_seconds"),
        shown(row["copy_ratio"], ".1f"),
        *(shown(answer.get("copies"), ".1f") for answer in (ours, naive)),
    ]


def _milliseconds(answer: dict, key: str = "seconds") -> str:
    return answer.get("problem") or format(1000 * answer[key], ",.2f")


def main(arguments: list[str]) -> None:
    """Measure and print; see ``--help``.

    Args:
        arguments: those of the command line.

    Raises:
        UserError: ``--only`` matches nothing.
    """
    options = parser("Measure operators with kernels, without, naively, and a plain copy.")
    options.add_argument("--tiny", action="store_true", help="tiny sizes, to try the command")
    args = options.parse_args(arguments)
    works = {work.name: work for work in (TINY if args.tiny else WORKS)}
    measure("benchmarks.operators", works, measured_rows, Table(COLUMNS, _cells), args)


if __name__ == "__main__":
    main(sys.argv[1:])
