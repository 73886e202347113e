"""The report as an HTML page that needs nothing else, or as Markdown with pictures beside it."""

import html
import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from fairseq_csp import published
from fairseq_csp.report.curves import draw, write_csv
from fairseq_csp.report.results import Cell, cells, results_table, runs_table
from fairseq_csp.report.runs import Run
from fairseq_csp.report.tables import html_table, markdown

RESULTS_NOTE = (
    "Of trained runs only. Test: accuracy of the checkpoint that was best on the valid split. "
    "Several seeds: mean ± standard deviation. Tokens: positions without padding, over the time "
    "in updates. Published: full data and schedule, of the model named in brackets (this attention "
    "function, or else the architecture's own); left out where a run's data, as its summary.json "
    "tells, is limited or generated."
)
RUNS_NOTE = (
    "not tested: the training ended, its best checkpoint was not tested (--test does it); "
    "unfinished: it is running or was stopped."
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem;
  color: #222; background: #fff; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left;
  vertical-align: top; }
th { border-bottom: 2px solid #888; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; }
p.note { color: #555; font-size: 13px; }
"""


def markdown_report(runs: Sequence[Run]) -> str:
    """Return the tables of the report as Markdown."""
    return _markdown(runs, [])


def write_markdown(runs: Sequence[Run], file: Path) -> None:
    """Write the report to a Markdown file, its curves to a directory named after it.

    There each data set has a picture and a table, ``NAME.png`` and ``NAME.csv``.
    """
    drawn = [(name, found, draw(found, "png")) for name, found in _by_dataset(runs)]
    directory = file.with_suffix("")
    links = []
    for name, found, picture in drawn:
        if picture is not None:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{name}.png").write_bytes(picture)
            write_csv(found, directory / f"{name}.csv")
            links.append(f"### {name}\n\n![accuracy of {name}]({directory.name}/{name}.png)\n")
    file.write_text(_markdown(runs, links), encoding="utf-8")


def write_html(runs: Sequence[Run], file: Path) -> None:
    """Write the report to one HTML file with its pictures inside."""
    parts = ["<h1>Training runs</h1>", _note(f"Made {time.strftime('%Y-%m-%d %H:%M %z')}.")]
    for title, note, table in _tables(runs):
        parts += [f"<h2>{title}</h2>", _note(note)]
        parts.append(f'<div class="wide">{html_table(*table)}</div>')
    pictures = [(name, draw(found, "svg")) for name, found in _by_dataset(runs)]
    if any(picture is not None for _, picture in pictures):
        parts.append("<h2>Learning curves</h2>")
    for name, picture in pictures:
        if picture is not None:
            svg = picture.decode()
            parts += [f"<h3>{html.escape(name)}</h3>", svg[svg.index("<svg") :]]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Training runs</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )
    file.write_text(page, encoding="utf-8")


def _tables(runs: Sequence[Run]) -> list[tuple[str, str, tuple[list[str], list[list[str]]]]]:
    return [
        ("Results", RESULTS_NOTE, results_table(cells(runs))),
        ("Runs", RUNS_NOTE, runs_table(runs)),
        ("Published test accuracy", "Percent.", published.table()),
    ]


def _markdown(runs: Sequence[Run], links: Iterable[str]) -> str:
    parts = ["# Training runs\n"]
    for title, note, table in _tables(runs):
        parts += [f"## {title}\n", f"{note}\n", markdown(*table)]
    links = list(links)
    if links:
        parts += ["## Learning curves\n", *links]
    return "\n".join(parts)


def _by_dataset(runs: Sequence[Run]) -> list[tuple[str, list[Cell]]]:
    groups = itertools.groupby(cells(runs), key=lambda cell: cell.runs[0].dataset)
    return [(name, list(group)) for name, group in groups]


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'
