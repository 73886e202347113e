"""Tables of text as Markdown and HTML."""

import html
import re
from collections.abc import Sequence

# perhaps with a unit, a deviation or a count behind it; or the word for a model without a result
_NUMBER = re.compile(r"\d[\d.,]*( (min|h|±|\().*)?$|fails$")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the columns of nothing but numbers are set to the right.

    Args:
        head: names of the columns.
        rows: one text a column.
    """
    rule = ["---:" if right else "---" for right in _numeric(head, rows)]
    lines = [[cell.replace("|", "\\|") for cell in row] for row in [head, *rows]]
    lines.insert(1, rule)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML table; see :func:`markdown`."""
    kinds = [' class="number"' if right else "" for right in _numeric(head, rows)]

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{kind}>{html.escape(cell)}</{tag}>"
            for kind, cell in zip(kinds, cells, strict=True)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>\n" for row in rows)
    return f"<table>\n<thead><tr>{line(head, 'th')}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"


def _numeric(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Tell of each column whether it holds numbers, empty cells aside."""
    columns = [[row[k] for row in rows if row[k]] for k in range(len(head))]
    return [bool(column) and all(map(_NUMBER.match, column)) for column in columns]
