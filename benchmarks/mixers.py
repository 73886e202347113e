"""Every mixer at several lengths, beside public implementations where they are installed.

python -m benchmarks.mixers --help
"""

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.mixer import PEERS
from benchmarks.plots import draw_lines
from benchmarks.report import Measurements, Table, measure, new_directory, parser, ratio, shown
from fairseq_csp.modules.attention import ATTENTION_REGISTRY

LENGTHS = (1024, 2048, 4096, 16384)
# the tokens of a batch, whatever the length
TOKENS = 16384
DIM, HEADS = 128, 4
COLUMNS = ["forward and backward", "length", "ms", "tokens/s", "peak MB", "public ms", "ratio"]


@dataclass(frozen=True)
class Work:
    """A mixer at one length.

    Attributes:
        mixer: its name.
        length: positions of a row.
        tokens: positions of a batch.
        dim: channels.
    """

    mixer: str
    length: int
    tokens: int = TOKENS
    dim: int = DIM

    @property
    def name(self) -> str:
        """Name of the work, for ``--only``."""
        return f"{self.mixer} {self.length}"

    def specs(self) -> dict[str, dict]:
        """Return what the measuring processes are told."""
        batch = max(1, self.tokens // self.length)
        shared = {"mixer": self.mixer, "batch": batch, "length": self.length, "dim": self.dim}
        shared["heads"] = HEADS
        specs = {"ours": shared | {"peer": False}}
        if self.mixer in PEERS and find_spec(PEERS[self.mixer][0]):
            specs["public"] = shared | {"peer": True}
        return specs


def measured_rows(work: Work, measurements: Measurements) -> list[dict]:
    """Measure a mixer at one length.

    Returns:
        Its one row of the table.
    """
    answers = measurements.best(work.specs())
    ours, public = answers["ours"], answers.get("public", {})
    tokens = max(1, work.tokens // work.length) * work.length
    return [
        {
            "mixer": work.mixer,
            "length": work.length,
            "tokens": tokens,
            "ours": ours,
            "public": public,
            "speed_ratio": ratio(public, "seconds", ours, "seconds"),
        }
    ]


def _cells(row: dict) -> list[str]:
    ours, public = row["ours"], row["public"]
    measured = "problem" not in ours
    return [
        row["mixer"],
        f"{row['length']:,}",
        f"{1000 * ours['seconds']:,.1f}" if measured else ours["problem"],
        f"{row['tokens'] / ours['seconds']:,.0f}" if measured else "",
        f"{ours['peak_bytes'] / 2**20:,.0f}" if measured else "",
        public.get("problem") or shown(1000 * public["seconds"], ",.1f") if public else "",
        shown(row["speed_ratio"], ".2f"),
    ]


def plot(rows: list[dict], directory: Path) -> None:
    """Draw time and memory of a token against the length: mixers-time.png, mixers-memory.png."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        if "problem" not in row["ours"]:
            per_token = (row["ours"][key] / row["tokens"] for key in ("seconds", "peak_bytes"))
            lines.setdefault(row["mixer"], []).append((row["length"], *per_token))
    for what, column, unit, label in (
        ("time", 1, 1e-6, "microseconds a token"),
        ("memory", 2, 1 << 10, "peak KiB a token"),
    ):
        points = {
            name: [(point[0], point[column] / unit) for point in measured]
            for name, measured in lines.items()
        }
        draw_lines(points, f"forward and backward: {label}", directory / f"mixers-{what}.png")


def main(arguments: list[str]) -> None:
    """Measure and print; see ``--help``.

    Args:
        arguments: those of the command line.

    Raises:
        UserError: ``--only`` matches nothing.
    """
    options = parser("Measure one layer with each mixer: time and peak memory against length.")
    options.add_argument("--tiny", action="store_true", help="tiny sizes, to try the command")
    options.add_argument("--plot", type=new_directory, metavar="DIR", help="draw pictures there")
    args = options.parse_args(arguments)
    sizes = {"tokens": 64, "dim": 8} if args.tiny else {}
    works = [
        Work(mixer, length, **sizes)
        for mixer in sorted(ATTENTION_REGISTRY)
        for length in ((16, 32) if args.tiny else LENGTHS)
    ]
    rows = measure(
        "benchmarks.mixer",
        {work.name: work for work in works},
        measured_rows,
        Table(COLUMNS, _cells),
        args,
    )
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main(sys.argv[1:])
