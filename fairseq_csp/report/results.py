"""From runs to cells: runs that differ in the seed alone are one cell."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fairseq_csp import published
from fairseq_csp.report.runs import FINISHED, NOT_TESTED, Run


@dataclass(frozen=True)
class Cell:
    """Runs of one data set, architecture, attention function and setting.

    Attributes:
        runs: the runs; where a seed was run several times, all of them.
        differing: the flags that tell this cell from others of the same data set, architecture and
            attention function, as on a command line.
    """

    runs: tuple[Run, ...]
    differing: str

    @property
    def name(self) -> str:
        """Architecture, attention function and what tells the cell from others."""
        first = self.runs[0]
        return " ".join(filter(None, [first.architecture, first.attention, self.differing]))

    def counted(self) -> list[Run]:
        """Return the trained runs, one a seed: a tested one, and of these the newest."""
        trained = [run for run in self.runs if run.status in (FINISHED, NOT_TESTED)]
        trained.sort(key=lambda run: (run.status == FINISHED, _started(run)))
        return sorted({run.seed: run for run in trained}.values(), key=lambda run: run.seed or 0)


def cells(runs: Iterable[Run]) -> list[Cell]:
    """Group runs by everything but their seed; runs that tell no configuration are left out."""
    groups: dict[tuple, dict[tuple, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.settings:
            name = (run.dataset, run.architecture, run.attention)
            groups[name][tuple(sorted(run.settings.items()))].append(run)
    found = []
    for _, settings in sorted(groups.items()):
        shared = set.intersection(*map(set, settings))
        for setting, members in settings.items():
            differing = " ".join(
                f"{flag} {value}" for flag, value in setting if (flag, value) not in shared
            )
            found.append(Cell(tuple(members), differing))
    return found


def results_table(found: Iterable[Cell]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the results, a row a cell that has a trained run."""
    head = ["data set", "architecture", "attention", "setting", "seeds", "best valid %", "test %"]
    head += ["parameters", "updates", "tokens/s", "wall time", "published %"]
    rows = []
    for cell in found:
        runs = cell.counted()
        if not runs:
            continue
        first = runs[0]
        generated = any(run.generated for run in runs)
        rows.append(
            [
                first.dataset,
                first.architecture,
                first.attention,
                cell.differing,
                ", ".join(str(run.seed) for run in runs),
                _spread([run.valid for run in runs], "{:.2f}".format),
                _spread([run.test for run in runs], "{:.2f}".format),
                _spread([run.parameters for run in runs], "{:,.0f}".format),
                _spread([run.updates for run in runs], "{:,.0f}".format),
                _spread([run.tokens_per_second for run in runs], "{:,.0f}".format),
                _mean([run.seconds for run in runs], duration),
                ""
                if generated
                else published.accuracy(first.family, first.attention, first.dataset),
            ]
        )
    return head, rows


def runs_table(runs: Iterable[Run]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of all runs, also of those that are unfinished or crashed."""
    head = ["run", "status", "data set", "architecture", "attention", "seed", "best valid %"]
    head += ["test %", "updates", "tokens/s", "wall time", "revision", "machine"]
    rows = []
    for run in runs:
        made_with = run.started or {}
        rows.append(
            [
                str(run.path),
                run.status,
                run.dataset,
                run.architecture,
                run.attention,
                "" if run.seed is None else str(run.seed),
                _mean([run.valid], "{:.2f}".format),
                _mean([run.test], "{:.2f}".format),
                _mean([run.updates], "{:,.0f}".format),
                _mean([run.tokens_per_second], "{:,.0f}".format),
                _mean([run.seconds], duration),
                made_with.get("revision") or "",
                ", ".join(made_with.get("gpus") or [made_with.get("machine", "")]),
            ]
        )
    return head, rows


def duration(seconds: float) -> str:
    """Write a time in hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _started(run: Run) -> str:
    return (run.started or {}).get("started", "")


def _mean(values: list[float | None], show: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    return show(statistics.mean(known)) if known else ""


def _spread(values: list[float | None], show: Callable[[float], str]) -> str:
    """Write the mean over the seeds, with their standard deviation where they differ."""
    known = [value for value in values if value is not None]
    text = _mean(known, show)
    if len(set(known)) > 1:
        text += f" ± {show(statistics.stdev(known))}"
    if 0 < len(known) < len(values):
        text += f" ({len(known)} of {len(values)})"
    return text
