"""Tables as Markdown and HTML."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fairseq_csp.output import printable

# perhaps with a unit, a deviation or a count behind it; or the word for a model without a result
_NUMBER = re.compile(r"\d[\d.,]*( (min|h|±|\().*)?$|fails$")


@dataclass(frozen=True)
class Value:
    """What stands in one place of a table.

    Attributes:
        text: as it is shown.
        number: what it is sorted by; None: by the text.
        best: whether it is the best of its column.
        links: texts that stand in place of ``text`` on a page, each with the element it leads to.
    """

    text: str
    number: float | None = None
    best: bool = False
    links: tuple[tuple[str, str], ...] = ()


Row = Sequence[str | Value]


def markdown(head: Sequence[str], rows: Sequence[Row]) -> str:
    """Return a Markdown table; the columns of nothing but numbers are set to the right.

    Args:
        head: names of the columns.
        rows: one value a column.
    """
    values = [[_value(cell) for cell in row] for row in rows]
    lines = [[escaped(name) for name in head]]
    lines.append(["---:" if right else "---" for right in _numeric(head, values)])
    lines += [
        [f"**{escaped(v.text)}**" if v.best else escaped(v.text) for v in row] for row in values
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def html_table(head: Sequence[str], rows: Sequence[Row]) -> str:
    """Return an HTML table, without the columns that have nothing in them.

    Args:
        head: names of the columns.
        rows: one value a column.
    """
    values = [[_value(cell) for cell in row] for row in rows]
    filled = [k for k in range(len(head)) if any(row[k].text for row in values)]
    head = [head[k] for k in filled]
    values = [[row[k] for k in filled] for row in values]
    right = _numeric(head, values)
    names = "".join(
        f'<th scope="col"{_class("number" * number)}>'
        f'<button type="button">{html.escape(name)}</button></th>'
        for name, number in zip(head, right, strict=True)
    )
    lines = [
        "".join(_html_cell(value, number) for value, number in zip(row, right, strict=True))
        for row in values
    ]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f"<table>\n<thead><tr>{names}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"


def _value(cell: str | Value) -> Value:
    return cell if isinstance(cell, Value) else Value(cell)


def escaped(text: str) -> str:
    """Return a text as Markdown shows it, in a table too."""
    return printable(text).replace("<", "&lt;").replace("|", "\\|")


def _html_cell(value: Value, right: bool) -> str:
    text = html.escape(printable(value.text))
    if value.links:
        text = ", ".join(
            f'<a href="#{target}">{html.escape(printable(shown))}</a>'
            for shown, target in value.links
        )
    classes = " ".join(["number"] * right + ["best"] * value.best)
    sort = "" if value.number is None else f' data-sort="{value.number!r}"'
    return f"<td{_class(classes)}{sort}>{text}</td>"


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _numeric(head: Sequence[str], rows: Sequence[Sequence[Value]]) -> list[bool]:
    """Tell of each column whether it holds numbers, empty ones aside."""
    columns = [[row[k].text for row in rows if row[k].text] for k in range(len(head))]
    return [bool(column) and all(map(_NUMBER.match, column)) for column in columns]
