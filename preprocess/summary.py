"""What a preparation made: figures per split, checked, printed and kept as ``summary.json``."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from fairseq_csp.data.summary import SUMMARY_FILE
from fairseq_csp.errors import UserError
from preprocess.archives import sha256

SPLITS = ("train", "valid", "test")
_MOST_SHOWN = 20


@dataclass(frozen=True)
class SplitFigures:
    """One split: examples, mean and longest length of each input, examples per class.

    Lengths of texts count the end-of-sentence symbol; lengths of images count pixels.
    """

    examples: int
    mean_length: dict[str, float]
    max_length: dict[str, int]
    classes: dict[str, int]

    @classmethod
    def of(
        cls, lengths: Mapping[str, np.ndarray], labels: np.ndarray, names: list[str]
    ) -> SplitFigures:
        """Count ``labels`` (examples,) and the ``lengths`` (examples,) of each input."""
        counts = np.bincount(labels, minlength=len(names)) if len(labels) else [0] * len(names)
        return cls(
            examples=len(labels),
            mean_length={
                key: round(float(np.mean(value)), 2) if len(value) else 0.0
                for key, value in lengths.items()
            },
            max_length={
                key: int(np.max(value)) if len(value) else 0 for key, value in lengths.items()
            },
            classes={name: int(count) for name, count in zip(names, counts, strict=True)},
        )


@dataclass(frozen=True)
class Figures:
    """All splits of a set.

    Attributes:
        splits: By their names.
        symbols: Size of the dictionary, with specials and padding; None for images.
        left_out: Files of the raw release that are known to be damaged; train has that many less.
    """

    splits: dict[str, SplitFigures]
    symbols: int | None = None
    left_out: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Examples of each split, those left out counted in."""
        counts = {split: value.examples for split, value in self.splits.items()}
        return counts | {"train": counts["train"] + len(self.left_out)}


def check_counts(name: str, figures: Figures, expected: Mapping[str, int]) -> None:
    """Compare the examples of each split with what they must be.

    Raises:
        UserError: a split has another number of examples.
    """
    for split, count in expected.items():
        found = figures.counts[split]
        if found != count:
            raise UserError(
                f"{name}: {split} has {found:,} examples, expected {count:,}; the raw data is "
                "incomplete or another release (--limit N prepares what there is, N a split)"
            )


def write_summary(
    directory: Path,
    name: str,
    figures: Figures,
    *,
    limited: bool,
    source: Mapping[str, object],
    options: Mapping[str, object],
) -> None:
    """Write ``directory/summary.json``, with the SHA-256 of each file that is there.

    Args:
        directory: The prepared set.
        name: Name of the data set.
        figures: What was written.
        limited: Whether the set has fewer or other examples than the full one.
        source: Where the data came from: files and SHA-256, or generator and seed.
        options: The options that shaped it.
    """
    content = {
        "name": name,
        "limited": limited,
        "symbols": figures.symbols,
        "left_out": figures.left_out,
        "splits": {split: asdict(value) for split, value in figures.splits.items()},
        "source": dict(source),
        "options": dict(options),
        "versions": _versions(),
        "files": {
            path.relative_to(directory).as_posix(): sha256(path)
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        },
    }
    (directory / SUMMARY_FILE).write_text(json.dumps(content, indent=2) + "\n")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in (
        "fairseq",
        "fairseq-fixed",
        "ve-fairseq",
        "numpy",
        "torch",
        "pillow",
        "sentencepiece",
    ):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _shares(split: SplitFigures) -> str:
    """Tell each class's share of a split, or that of the rarest and the most frequent of many."""
    shares = {name: count / max(split.examples, 1) for name, count in split.classes.items()}
    if len(shares) > _MOST_SHOWN:
        return f"{len(shares)}, {min(shares.values()):.1%} to {max(shares.values()):.1%} each"
    return "  ".join(f"{name}: {share:.1%}" for name, share in shares.items())


def format_table(figures: Figures) -> str:
    """Lay the figures out as a table of one line a split."""
    rows = [("split", "examples", "mean length", "max length", "symbols", "classes")]
    for split, value in figures.splits.items():
        rows.append(
            (
                split,
                f"{value.examples:,}",
                " + ".join(f"{mean:,.1f}" for mean in value.mean_length.values()),
                " + ".join(f"{longest:,}" for longest in value.max_length.values()),
                "-" if figures.symbols is None else str(figures.symbols),
                _shares(value),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        "  ".join(
            cell.ljust(width) if column in (0, 5) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines) + "\n"
