"""Pictures of the text rows of ``benchmarks.speed``."""

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
    lines: dict[str, list[dict]] = {}
    for row in rows:
        if row["arch"].endswith("_lra_imdb") and "seconds" in row["ours"]:
            suffix = "" if row["dtype"] == "float32" else f" {row['dtype']}"
            lines.setdefault(row["mechanism"] + suffix, []).append(row)
    _draw(lines, "seconds", 1, "seconds a row", directory / "time.png")
    _draw(lines, "peak_bytes", 1 << 20, "peak MB a row", directory / "memory.png")


def _draw(lines: dict[str, list[dict]], key: str, unit: int, label: str, file: Path) -> None:
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 5))
    for name, rows in lines.items():
        lengths = [row["length"] for row in rows]
        axes.plot(
            lengths,
            [row["ours"][key] / row["batch"] / unit for row in rows],
            marker="o",
            label=name,
        )
    ticks = sorted({row["length"] for rows in lines.values() for row in rows})
    axes.set(xscale="log", yscale="log", xlabel="length", ylabel=f"training step: {label}")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.savefig(file, dpi=150, bbox_inches="tight")
    pyplot.close(figure)
