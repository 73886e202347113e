"""The published numbers: consistent in themselves, and shown where a reader looks."""

import pytest

from fairseq_csp import published
from fairseq_csp.datasets import FAILS
from fairseq_csp.report.tables import markdown
from tests.helpers.commands import ROOT


def test_averages_are_those_of_the_rows():
    _, rows = published.table()
    for name, *cells, average in rows:
        numbers = [float(cell) for cell in cells if cell not in ("", FAILS)]
        if average:
            assert float(average) == pytest.approx(sum(numbers) / len(numbers), abs=0.011), name


def test_the_document_shows_the_table():
    text = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    assert markdown(*published.table()) in text


@pytest.mark.parametrize(
    ("family", "dataset", "expected"),
    [
        ("mega", "path-x", "97.98"),
        ("transformer", "path-x", "fails"),
        ("flash", "path-x", ""),
        ("lstm", "listops", ""),
        ("mega", "listops-demo", ""),
    ],
)
def test_accuracy_of_a_cell(family, dataset, expected):
    assert published.accuracy(family, dataset) == expected
