"""MEGA's layer with its own attention, beside whole matrices and transformers' MEGA.

python -m benchmarks.mega_layers --help
"""

import sys
from dataclasses import dataclass

from benchmarks.mega_layer import public_mega
from benchmarks.report import Measurements, Table, measure, parser, ratio, shown

COLUMNS = [
    "forward and backward",
    "s",
    "whole matrices s",
    "transformers s",
    "transformers / ours",
    "peak MB",
    "whole matrices MB",
    "transformers MB",
    "ours / transformers",
]
WAYS = ("ours", "whole", "public")
# transformers has the functions softmax and laplace
FUNCTIONS = ("softmax", "laplace", "relu2")


@dataclass(frozen=True)
class Work:
    """A layer on a batch without padding.

    Attributes:
        attention: the attention function.
        batch: number of sequences.
        length: positions of a sequence.
        dim: channels; twice as many inside, half as many of queries and keys.
    """

    attention: str
    batch: int = 4
    length: int = 4000
    dim: int = 128

    @property
    def name(self) -> str:
        """Name of the work, for ``--only``."""
        return f"mega {self.attention} {self.batch} x {self.length}"

    def specs(self) -> dict[str, dict]:
        """Return what the measuring processes are told."""
        shared = vars(self) | {"hidden": 2 * self.dim, "z_dim": self.dim // 2}
        ways = WAYS if public_mega() and self.attention != "relu2" else WAYS[:2]
        return {way: shared | {"which": way} for way in ways}


def measured_rows(work: Work, measurements: Measurements) -> list[dict]:
    """Measure a layer.

    Returns:
        Its one row of the table.
    """
    answers = {way: {} for way in WAYS} | measurements.best(work.specs())
    ours, public = answers["ours"], answers["public"]
    return [
        answers
        | {
            "name": work.name,
            "speed_ratio": ratio(public, "seconds", ours, "seconds"),
            "memory_ratio": ratio(ours, "peak_bytes", public, "peak_bytes"),
        }
    ]


def _cells(row: dict) -> list[str]:
    answers = [row[way] for way in WAYS]
    seconds = [answer.get("problem") or shown(answer.get("seconds"), ",.2f") for answer in answers]
    peaks = [
        f"{answer['peak_bytes'] / 2**20:,.0f}" if "peak_bytes" in answer else ""
        for answer in answers
    ]
    speed, memory = (shown(row[key], ".2f") for key in ("speed_ratio", "memory_ratio"))
    return [row["name"], *seconds, speed, *peaks, memory]


def main(arguments: list[str]) -> None:
    """Measure and print; see ``--help``.

    Args:
        arguments: those of the command line.

    Raises:
        UserError: ``--only`` matches nothing.
    """
    options = parser("Measure MEGA's layer with its own attention: time and peak memory.")
    options.add_argument("--tiny", action="store_true", help="tiny sizes, to try the command")
    args = options.parse_args(arguments)
    sizes = {"batch": 2, "length": 48, "dim": 8} if args.tiny else {}
    works = {work.name: work for work in (Work(name, **sizes) for name in FUNCTIONS)}
    measure("benchmarks.mega_layer", works, measured_rows, Table(COLUMNS, _cells), args)


if __name__ == "__main__":
    main(sys.argv[1:])
