"""Learning curves as pictures and as a table."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from fairseq_csp.plots import load_pyplot
from fairseq_csp.report.results import Cell


def draw(found: Sequence[Cell], form: str) -> bytes | None:
    """Draw accuracy against updates: a colour a cell, a line a seed.

    Args:
        found: cells of one data set.
        form: ``png`` or ``svg``.

    Returns:
        The picture; None where no run has a curve.
    """
    drawn = [
        cell
        for cell in found
        if any(run.curves["valid"] or run.curves["train"] for run in cell.runs)
    ]
    if not drawn:
        return None
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharex=True, sharey=True)
    for number, cell in enumerate(drawn):
        for run in cell.runs:
            for panel, split in zip(axes, ("train", "valid"), strict=True):
                curve = sorted(run.curves[split].items())
                panel.plot(
                    [update for update, _ in curve],
                    [point.accuracy for _, point in curve],
                    color=f"C{number % 10}",
                    linestyle="-" if number < 10 else "--",
                    marker="o" if split == "valid" else None,
                    markersize=3,
                    linewidth=1.2,
                    label=cell.name if run is cell.runs[0] else None,
                )
    for panel, split in zip(axes, ("train", "valid"), strict=True):
        chances = {run.chance for cell in drawn for run in cell.runs} - {None}
        for chance in chances:
            panel.axhline(chance, color="grey", linestyle=":", label=f"chance, {chance:g} %")
        panel.set(title=split, xlabel="updates", ylabel="accuracy (%)" if split == "train" else "")
        panel.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format=form, dpi=150, bbox_inches="tight")
    pyplot.close(figure)
    return picture.getvalue()


def write_csv(found: Sequence[Cell], file: Path) -> None:
    """Write every point of the curves: a line for each run, split and update."""
    with open(file, "w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(
            [
                "architecture",
                "attention",
                "setting",
                "seed",
                "split",
                "update",
                "loss_bits",
                "accuracy",
            ]
        )
        for cell in found:
            for run in cell.runs:
                name = [run.architecture, run.attention, cell.differing, run.seed]
                for split, curve in run.curves.items():
                    for update, point in sorted(curve.items()):
                        writer.writerow([*name, split, update, point.loss, point.accuracy])
