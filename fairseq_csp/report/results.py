"""From runs to cells: runs that differ in the seed alone are one cell."""

import hashlib
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from fairseq_csp import published
from fairseq_csp.datasets import DATASETS
from fairseq_csp.report.runs import FINISHED, NOT_TESTED, Run
from fairseq_csp.report.tables import Value

# the names of the columns, and the rows
Table = tuple[list[str], Sequence[Sequence[str | Value]]]


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
        trained.sort(key=lambda run: (run.status == FINISHED, run.start.time))
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


def summary_table(found: Sequence[Cell]) -> Table:
    """Return head and rows of the test accuracies: a row a model, a column a data set."""
    shown: dict[tuple[str, str, str], dict[str, Value]] = defaultdict(dict)
    for cell in found:
        first = cell.runs[0]
        value = _test(cell.counted())
        if value.text:
            # transformer_rope of transformer_rope_lra_imdb, so that data sets share a row
            model = first.architecture.partition("_lra_")[0]
            if first.dataset in shown.get((model, first.attention, cell.differing), {}):
                model = first.architecture
            shown[model, first.attention, cell.differing][first.dataset] = value
    datasets = sorted({dataset for values in shown.values() for dataset in values}, key=_place)
    rows = [
        [*map(Value, name), *(values.get(dataset, Value("")) for dataset in datasets)]
        for name, values in sorted(shown.items())
    ]
    _mark_best(rows, range(3, 3 + len(datasets)))
    return ["model", "attention", "setting", *datasets], rows


def results_table(found: Iterable[Cell]) -> Table:
    """Return head and rows of the results: a row a cell with a trained run, best test first."""
    head = ["data set", "architecture", "attention", "setting", "seeds", "best valid %", "test %"]
    head += ["parameters", "updates", "tokens/s", "wall time", "published %"]
    by_dataset: dict[str, list[list[Value]]] = defaultdict(list)
    for cell in found:
        runs = cell.counted()
        if runs:
            by_dataset[runs[0].dataset].append(_result(cell, runs))
    for rows in by_dataset.values():
        rows.sort(key=lambda row: [-(value.number or 0) for value in (row[6], row[5])])
        _mark_best(rows, [head.index(name) for name in ("best valid %", "test %", "tokens/s")])
    return head, [row for name in sorted(by_dataset, key=_place) for row in by_dataset[name]]


def _result(cell: Cell, runs: list[Run]) -> list[Value]:
    first = runs[0]
    published_accuracy = published.accuracy(first.family, first.attention, first.dataset)
    return [
        Value(first.dataset),
        Value(first.architecture),
        Value(first.attention),
        Value(cell.differing),
        Value(
            ", ".join(map(_seed, runs)),
            links=tuple((_seed(run), anchor(run)) for run in runs),
        ),
        _spread([run.valid for run in runs], "{:.2f}".format),
        _test(runs),
        _spread([run.parameters for run in runs], "{:,.0f}".format),
        _spread([run.updates for run in runs], "{:,.0f}".format),
        _spread([run.tokens_per_second for run in runs], "{:,.0f}".format),
        _mean([run.seconds for run in runs], duration),
        Value("" if any(run.generated for run in runs) else published_accuracy),
    ]


def runs_table(runs: Iterable[Run]) -> Table:
    """Return head and rows of all runs, also of those that are unfinished or crashed."""
    head = ["run", "status", "data set", "architecture", "attention", "seed", "best valid %"]
    head += ["test %", "updates", "tokens/s", "wall time", "changed", "revision", "machine"]
    rows = [
        [
            Value(str(run.path), links=((str(run.path), anchor(run)),)),
            Value(run.status),
            Value(run.dataset),
            Value(run.architecture),
            Value(run.attention),
            Value("" if run.seed is None else str(run.seed)),
            _mean([run.valid], "{:.2f}".format),
            _mean([run.test], "{:.2f}".format),
            _mean([run.updates], "{:,.0f}".format),
            _mean([run.tokens_per_second], "{:,.0f}".format),
            _mean([run.seconds], duration),
            Value(" ".join(run.start.changed)),
            Value(run.start.revision),
            Value(run.start.machine),
        ]
        for run in runs
    ]
    return head, rows


def _seed(run: Run) -> str:
    """Write a run's seed, with a mark where its flags were changed on the way."""
    return f"{run.seed}*" if run.start.changed else str(run.seed)


def _place(dataset: str) -> tuple[int, str]:
    """Return what data sets are sorted by: those of the table as there, then the others."""
    known = list(DATASETS)
    name = dataset.removesuffix("-demo")
    return known.index(name) if name in known else len(known), dataset


def anchor(run: Run) -> str:
    """Return the name of the element of a page that has a run's command."""
    return "run-" + hashlib.sha256(os.fsencode(run.path)).hexdigest()[:12]


def wilson(share: float, examples: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of an accuracy by Wilson's score (JASA 22, 1927).

    Args:
        share: accuracy that was measured, from 0 to 1.
        examples: how many examples it was measured on, at least 1.
    """
    z = 1.959964
    centre = (share + z**2 / (2 * examples)) / (1 + z**2 / examples)
    half = (
        z
        / (1 + z**2 / examples)
        * math.sqrt(share * (1 - share) / examples + (z / (2 * examples)) ** 2)
    )
    return max(0.0, centre - half), min(1.0, centre + half)


def duration(seconds: float) -> str:
    """Write a time in hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _test(runs: list[Run]) -> Value:
    """Write the test accuracy; that of one seed with its confidence interval."""
    value = _spread([run.test for run in runs], "{:.2f}".format)
    if value.text and any(run.chosen_on_test for run in runs):
        return replace(value, text=f"{value.text} (best epoch chosen on test)")
    if len(runs) == 1 and runs[0].test is not None and runs[0].examples:
        low, high = wilson(runs[0].test / 100, runs[0].examples)
        return replace(value, text=f"{value.text} ({100 * low:.2f} to {100 * high:.2f})")
    return value


def _mean(values: list[float | None], show: Callable[[float], str]) -> Value:
    known = [value for value in values if value is not None]
    if not known:
        return Value("")
    mean = statistics.mean(known)
    return Value(show(mean), number=float(mean))


def _spread(values: list[float | None], show: Callable[[float], str]) -> Value:
    """Write the mean over the seeds, with their standard deviation where they differ."""
    known = [value for value in values if value is not None]
    mean = _mean(known, show)
    text = mean.text
    if len(set(known)) > 1:
        text += f" ± {show(statistics.stdev(known))}"
    if 0 < len(known) < len(values):
        text += f" ({len(known)} of {len(values)})"
    return replace(mean, text=text)


def _mark_best(rows: list[list[Value]], columns: Iterable[int]) -> None:
    """Mark the largest number of each column that has several."""
    for column in columns:
        numbers = [row[column].number for row in rows if row[column].number is not None]
        for row in rows if len(numbers) > 1 else []:
            if row[column].number == max(numbers):
                row[column] = replace(row[column], best=True)
