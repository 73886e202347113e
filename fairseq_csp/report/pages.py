"""The report as an HTML page that needs nothing else, or as Markdown with pictures beside it."""

import html
import itertools
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from fairseq_csp import published, published_images
from fairseq_csp.output import printable, write_files
from fairseq_csp.report import curves
from fairseq_csp.report.results import (
    Cell,
    Table,
    anchor,
    cells,
    results_table,
    runs_table,
    summary_table,
)
from fairseq_csp.report.runs import Run
from fairseq_csp.report.tables import escaped, html_table, markdown

SUMMARY_NOTE = (
    "Test accuracy in percent, of the checkpoint that was best on the valid split. One seed: with "
    "its 95 % confidence interval (Wilson), which tells the chance of the test examples, not that "
    "of training anew. Several seeds: mean ± standard deviation. The best of a column is marked."
)
RESULTS_NOTE = (
    "Of trained runs only; the best of a data set first. A seed with *: resumed with other flags, "
    "named among the runs as changed. Several seeds: mean ± standard deviation. "
    "Tokens: positions without padding, over the time in updates. Published: full data and "
    "schedule, of the model named in brackets (this attention function, or else the architecture's "
    "own); left out where a run's data, as its summary.json tells, is limited or generated."
)
RUNS_NOTE = (
    "not tested: the training ended, its best checkpoint was not tested (--test does it); "
    "unfinished: it is running or was stopped; stage of a run: another training began with its "
    "weights, and only that one is among the results."
)
# title, note and table
Section = tuple[str, str, Table]
PUBLISHED: Section = (
    "Published test accuracy",
    "Percent, on the Long Range Arena. Compare within one source only.",
    published.table(),
)
PUBLISHED_IMAGES: Section = (
    "Published accuracy of image classification",
    "Top-1 in percent on test. Recipes and augmentation differ; compare within one source only.",
    published_images.table(),
)
NO_COMMAND = "not recorded: train_lra.sh writes it down"
STYLE = """
:root { color-scheme: light dark; --text: #222; --soft: #5a5a5a; --line: #d8d8d8; --back: #fff;
  --head: #f3f4f6; --best: #e3f4e8; --hover: #eef3fb; --link: #0b57d0; }
@media (prefers-color-scheme: dark) { :root { --text: #e2e2e2; --soft: #a8a8a8; --line: #3c3f44;
  --back: #16181c; --head: #23262b; --best: #1d4028; --hover: #26303f; --link: #8ab4f8; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 84rem;
  padding: 0 1rem; color: var(--text); background: var(--back); }
h1 { margin-bottom: 0; } h2 { margin: 2.2rem 0 .3rem; }
a { color: var(--link); }
.note { color: var(--soft); font-size: .875rem; margin: .2rem 0 .8rem; max-width: 60rem; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .875rem; width: 100%; }
th, td { padding: .35rem .65rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; min-width: 4rem; }
tbody tr:last-child td { border-bottom: 0; }
tbody tr:hover { background: var(--hover); }
th { background: var(--head); white-space: nowrap; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: 0; cursor: pointer; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.best { font-weight: 700; background: var(--best); }
.panels { display: flex; flex-wrap: wrap; gap: .5rem; }
.panels svg { flex: 1 1 20rem; max-width: 40rem; height: auto; }
ul.legend { list-style: none; margin: .3rem 0 0; padding: 0; display: flex; flex-wrap: wrap;
  gap: .1rem 1.2rem; font-size: .875rem; }
ul.legend svg { margin-right: .4rem; vertical-align: middle; }
figure { margin: 0 0 1.5rem; }
figure.chosen g[data-cell]:not(.chosen) { opacity: .12; }
pre { background: var(--head); padding: .6rem .8rem; border-radius: 6px; font-size: .8125rem;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 1rem; }
h3 { font-size: 1rem; margin: 1rem 0 .2rem; overflow-wrap: anywhere; }
:target { outline: 2px solid var(--link); outline-offset: 4px; }
"""
# a click on a column's name sorts; a name in a legend that is pointed at shows its curves alone
SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => {
      const cell = row.cells[head.cellIndex], text = cell.textContent;
      const number = parseFloat(cell.dataset.sort ?? text.replaceAll(",", ""));
      return [text === "", Number.isNaN(number) ? Infinity : number, text];
    };
    const rows = [...body.rows].map(row => [key(row), row]);
    const sign = down ? -1 : 1;
    rows.sort(([a], [b]) => a[0] - b[0] || (a[1] === b[1] ? sign * a[2].localeCompare(b[2])
      : sign * (a[1] < b[1] ? -1 : 1)));
    body.append(...rows.map(([, row]) => row));
  });
}
for (const name of document.querySelectorAll("ul.legend li")) {
  const figure = name.closest("figure");
  const show = on => {
    figure.classList.toggle("chosen", on);
    for (const lines of figure.querySelectorAll(`g[data-cell="${name.dataset.cell}"]`))
      lines.classList.toggle("chosen", on);
  };
  name.addEventListener("pointerenter", () => show(true));
  name.addEventListener("pointerleave", () => show(false));
}
"""


def markdown_report(runs: Sequence[Run]) -> str:
    """Return the tables on the runs as Markdown."""
    return _markdown(_tables(runs), [])


def write_markdown(runs: Sequence[Run], file: Path) -> None:
    """Write the report to a Markdown file, its curves to a directory named after it.

    There each data set has a picture and a table, ``NAME.svg`` and ``NAME.csv``.

    Raises:
        UserError: it cannot be written.
    """
    directory = file.with_suffix("")
    files: dict[Path, str] = {}
    links = []
    for name, found in _with_curves(runs):
        # a name of a file and of a link, whatever the data's directory is called
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", name[:100])
        while directory / f"{stem}.svg" in files:
            stem += "_"
        files[directory / f"{stem}.svg"] = curves.drawing(found)
        files[directory / f"{stem}.csv"] = curves.points_csv(found)
        address = quote(os.fsencode(f"{directory.name}/{stem}.svg"))
        links.append(f"### {escaped(name)}\n\n![accuracy of {stem}]({address})\n")
    write_files(files | {file: _markdown([*_tables(runs), *_published(runs)], links)})


def write_html(runs: Sequence[Run], file: Path) -> None:
    """Write the report to one HTML file with its pictures inside.

    Raises:
        UserError: it cannot be written.
    """
    parts = ["<h1>Training runs</h1>", _note(f"Made {time.strftime('%Y-%m-%d %H:%M %z')}.")]
    tables = [
        f"<h2>{title}</h2>\n{_note(note)}\n"
        f'<div class="wide" tabindex="0">{html_table(*table)}</div>'
        for title, note, table in [*_tables(runs), *_published(runs)]
    ]
    figures = [_figure(name, found) for name, found in _with_curves(runs)]
    if figures:
        # after the results
        figures.insert(0, "<h2>Learning curves</h2>")
    parts += [*tables[:-2], *figures, *tables[-2:], "<h2>Commands</h2>", *map(_commands, runs)]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Training runs</title>\n<style>{STYLE}{curves.STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
    write_files({file: page})


def _figure(name: str, found: Sequence[Cell]) -> str:
    panels = "".join(curves.panel(found, split) for split in curves.SPLITS)
    names = "".join(
        f'<li data-cell="{number}">{line}{text}</li>'
        for number, (line, text) in enumerate(curves.legend(found))
    )
    return (
        f"<h3>{html.escape(printable(name))}</h3>\n<figure><div class='panels'>{panels}</div>"
        f'<ul class="legend">{names}</ul></figure>'
    )


def _commands(run: Run) -> str:
    path = html.escape(printable(run.path))
    commands = run.start.commands or (NO_COMMAND,)
    lines = "\n".join(html.escape(printable(command, most=10_000)) for command in commands)
    return f'<h3 id="{anchor(run)}">{path}</h3>\n<pre>{lines}</pre>'


def _published(runs: list[Run]) -> list[Section]:
    """Return the published numbers that are about the benchmarks of some runs."""
    of_images = [run.family == "vit" for run in runs]
    sections = [] if of_images and all(of_images) else [PUBLISHED]
    return [*sections, PUBLISHED_IMAGES] if any(of_images) else sections


def _tables(runs: Sequence[Run]) -> list[Section]:
    found = cells(runs)
    sections = [
        ("Summary", SUMMARY_NOTE, summary_table(found)),
        ("Results", RESULTS_NOTE, results_table(found)),
        ("Runs", RUNS_NOTE, runs_table(runs)),
    ]
    # nothing was tested, or trained
    return [section for section in sections if section[2][1]]


def _markdown(tables: Iterable[Section], links: Sequence[str]) -> str:
    parts = ["# Training runs\n"]
    for title, note, table in tables:
        parts += [f"## {title}\n", f"{note}\n", markdown(*table)]
    if links:
        parts += ["## Learning curves\n", *links]
    return "\n".join(parts)


def _with_curves(runs: Sequence[Run]) -> list[tuple[str, list[Cell]]]:
    groups = itertools.groupby(cells(runs), key=lambda cell: cell.runs[0].dataset)
    found = [(name, curves.drawn(list(group))) for name, group in groups]
    return [(name, group) for name, group in found if group]


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'
