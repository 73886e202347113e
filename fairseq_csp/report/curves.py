"""Learning curves as SVG and as a table.

The drawings are written here rather than by matplotlib, so that their text stays text, their
colours follow the reader's (light or dark), and a report needs nothing installed.
"""

import html
import math
from collections.abc import Sequence

from fairseq_csp.output import csv_text, printable
from fairseq_csp.report.results import Cell
from fairseq_csp.report.runs import Run

SPLITS = ("train", "valid")
WIDTH, HEIGHT = 520, 330
# of a panel: what its axes leave free
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 30, 48
# more points than pixels would only make the file larger
MOST_POINTS = 400
DASHES = ("none", "7 3", "2 3", "9 3 2 3")
LIGHT = ["#0067a5", "#c8500a", "#00805a", "#a8488a", "#8a6d00", "#2a93c9", "#6d4aa0", "#555555"]
DARK = ["#5db3f0", "#ff9a5c", "#3fd0a0", "#f08fd0", "#e0c040", "#8ad4ff", "#b79bf0", "#bbbbbb"]
# colours of the curves and of what is around them, in a page or in a drawing alone
STYLE = (
    "svg.curves { font: 14px system-ui, sans-serif; fill: currentColor; color: #222; }\n"
    "svg.curves .back { fill: #fff; }\n"
    "svg.curves polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }\n"
    "svg.curves .grid { stroke: currentColor; stroke-opacity: .18; }\n"
    "svg.curves .chance { stroke: currentColor; stroke-opacity: .7; stroke-dasharray: 2 4; }\n"
    + "".join(f".c{k} {{ stroke: {color}; }}\n" for k, color in enumerate(LIGHT))
    + "svg.curves circle { fill: none; stroke-width: 1.8; pointer-events: all; }\n"
    + "@media (prefers-color-scheme: dark) {\nsvg.curves { color: #ddd; }\n"
    + "svg.curves .back { fill: #16181c; }\n"
    + "".join(f".c{k} {{ stroke: {color}; }}\n" for k, color in enumerate(DARK))
    + "}\n"
)


def drawn(found: Sequence[Cell]) -> list[Cell]:
    """Return the cells that have a curve."""
    return [
        cell for cell in found if any(_points(run, split) for run in cell.runs for split in SPLITS)
    ]


def panel(found: Sequence[Cell], split: str) -> str:
    """Draw accuracy against updates: a colour or dash a cell, a line a seed.

    Args:
        found: cells of one data set, with curves.
        split: ``train`` or ``valid``.

    Returns:
        An ``svg`` element of ``WIDTH`` x ``HEIGHT``.
    """
    # both panels have the same axes
    points = [p for cell in found for run in cell.runs for s in SPLITS for p in _points(run, s)]
    chances = sorted({run.chance for cell in found for run in cell.runs} - {None})
    updates = _ticks(0, max(update for update, _ in points))
    accuracies = _ticks(
        min([accuracy for _, accuracy in points] + chances),
        max([accuracy for _, accuracy in points] + chances),
    )

    def x(update: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * update / updates[-1]

    def y(accuracy: float) -> float:
        share = (accuracy - accuracies[0]) / (accuracies[-1] - accuracies[0])
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [f'<text x="{LEFT}" y="18" font-weight="600">accuracy on {split} (%)</text>']
    for tick in accuracies:
        at = f"{y(tick):.1f}"
        parts.append(f'<path class="grid" d="M{LEFT} {at}H{right}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at}" dy=".35em" text-anchor="end">{tick:g}</text>')
    for tick in updates:
        parts.append(
            f'<text x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{_short(tick)}</text>'
        )
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">updates</text>')
    for chance in chances:
        parts.append(
            f'<path class="chance" d="M{LEFT} {y(chance):.1f}H{right}">'
            f"<title>chance, {chance:g} %</title></path>"
        )
    for number, cell in enumerate(found):
        lines = []
        for run in cell.runs:
            curve = _thinned(_points(run, split))
            places = [f"{x(update):.1f},{y(accuracy):.1f}" for update, accuracy in curve]
            name = html.escape(printable(f"{cell.name}, seed {run.seed}"))
            lines.append(
                f'<polyline {_stroke(number)} points="{" ".join(places)}">'
                f"<title>{name}</title></polyline>"
            )
            if split == "valid" and len(curve) <= MOST_POINTS // 4:
                lines += [
                    f'<circle {_stroke(number)} cx="{place.partition(",")[0]}" '
                    f'cy="{place.partition(",")[2]}" r="2.5"><title>{name}: '
                    f"{accuracy:.2f} % after {update:,} updates</title></circle>"
                    for place, (update, accuracy) in zip(places, curve, strict=True)
                ]
        parts.append(f'<g data-cell="{number}">{"".join(lines)}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="curves" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="accuracy on {split} against updates">{"".join(parts)}</svg>'
    )


def legend(found: Sequence[Cell]) -> list[tuple[str, str]]:
    """Return of each cell a short line, as SVG of 30 x 12, and its name."""
    return [
        (
            '<svg xmlns="http://www.w3.org/2000/svg" class="curves" width="30" height="12" '
            f'aria-hidden="true"><polyline {_stroke(number)} points="0,6 30,6"/></svg>',
            html.escape(printable(cell.name)),
        )
        for number, cell in enumerate(found)
    ]


def drawing(found: Sequence[Cell]) -> str:
    """Return both panels and their legend as one SVG file."""
    names = legend(found)
    height = HEIGHT + 10 + 20 * len(names)
    # whatever page it stands in, the text has its own ground
    parts = [f"<style>{STYLE}</style>", '<rect class="back" width="100%" height="100%"/>']
    for number, split in enumerate(SPLITS):
        parts.append(
            f'<svg x="{number * WIDTH}" width="{WIDTH}" height="{HEIGHT}"'
            + panel(found, split).removeprefix('<svg xmlns="http://www.w3.org/2000/svg"')
        )
    for number, (line, name) in enumerate(names):
        top = HEIGHT + 10 + 20 * number
        parts.append(f'<g transform="translate({LEFT} {top})">{line}')
        parts.append(f'<text x="38" y="6" dy=".35em">{name}</text></g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="curves" width="{2 * WIDTH}" '
        f'height="{height}" viewBox="0 0 {2 * WIDTH} {height}">{"".join(parts)}</svg>\n'
    )


def points_csv(found: Sequence[Cell]) -> str:
    """Return every point of the curves as CSV: a line for each run, split and update."""
    head = ["architecture", "attention", "setting", "seed"]
    return csv_text(
        [*head, "split", "update", "loss_bits", "accuracy"],
        (
            [run.architecture, run.attention, cell.differing, run.seed]
            + [split, update, point.loss, point.accuracy]
            for cell in found
            for run in cell.runs
            for split, curve in run.curves.items()
            for update, point in sorted(curve.items())
        ),
    )


def _points(run: Run, split: str) -> list[tuple[int, float]]:
    return [(update, point.accuracy) for update, point in sorted(run.curves[split].items())]


def _thinned(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    kept = curve[:: math.ceil(len(curve) / MOST_POINTS) or 1]
    return kept if not curve or kept[-1] == curve[-1] else [*kept, curve[-1]]


def _stroke(number: int) -> str:
    dash = DASHES[number // len(LIGHT) % len(DASHES)]
    return f'class="c{number % len(LIGHT)}" stroke-dasharray="{dash}"'


def _ticks(low: float, high: float) -> list[float]:
    """Return four to eight round numbers, of which the first and the last enclose the range."""
    high = max(high, low + 1e-3)
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * k, 9) for k in range(first, last + 1)]


def _short(number: float) -> str:
    """Write a number of updates in few characters."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"
