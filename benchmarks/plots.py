"""Pictures of the text rows of ``benchmarks.speed``."""

import itertools
from pathlib import Path

from fairseq_csp.plots import load_pyplot


def plot(rows: list[dict], directory: Path) -> None:
    """Draw time and peak memory of one row of text against its length: time.png, memory.png.

    Args:
        rows: what ``benchmarks.speed`` measured.
        directory: where the files go; made where it is missing.

    Raises:
        UserError: matplotlib is not installed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for key, unit, label, name in (
        ("seconds", 1, "seconds a row", "time.png"),
        ("peak_bytes", 1 << 20, "peak MB a row", "memory.png"),
    ):
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row["arch"].endswith("_lra_imdb") and "seconds" in row["ours"]:
                suffix = "" if row["dtype"] == "float32" else f" {row['dtype']}"
                point = (row["length"], row["ours"][key] / row["batch"] / unit)
                lines.setdefault(row["mechanism"] + suffix, []).append(point)
        draw_lines(lines, f"training step: {label}", directory / name)


def draw_lines(lines: dict[str, list[tuple[float, float]]], label: str, file: Path) -> None:
    """Draw lines of points (length, number) on logarithmic axes.

    Args:
        lines: points by the line's name.
        label: of the numbers.
        file: the picture.

    Raises:
        UserError: matplotlib is not installed.
    """
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 5))
    styles = itertools.product(("-", "--", ":"), (f"C{number}" for number in range(10)))
    for (name, points), (style, color) in zip(lines.items(), styles, strict=False):
        axes.plot(*zip(*points, strict=True), style, color=color, marker="o", label=name)
    ticks = sorted({length for points in lines.values() for length, _ in points})
    axes.set(xscale="log", yscale="log", xlabel="length", ylabel=label)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.savefig(file, dpi=150, bbox_inches="tight")
    pyplot.close(figure)
