"""The page and the tables on runs that are made up: many mixers, several data sets and seeds."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fairseq_csp.report import curves
from fairseq_csp.report.logs import Point
from fairseq_csp.report.pages import markdown_report, write_html
from fairseq_csp.report.results import cells, wilson
from fairseq_csp.report.runs import FINISHED, Run, Start
from tests.report.test_report import table

MIXERS = {"csp": 40.0, "softmax": 45.0, "nystrom": 30.0}
SUFFIXES = {"cifar10-demo": "cifar10", "listops-demo": "listop", "mine": "listop"}


def run(family, mixer, dataset, seed, test, speed=1000.0):
    arch = f"{family}_lra_{SUFFIXES[dataset]}"
    points = {update: Point(1.0, test * update / 100) for update in (50, 100)}
    return Run(
        Path(f"outputs/{dataset}/{arch}-{mixer}/{seed}"),
        FINISHED,
        data=f"/data/{dataset}",
        architecture=arch,
        attention=mixer,
        settings={"--lr": "0.1"},
        seed=seed,
        chance=10.0,
        valid=test + 1,
        test=test,
        examples=500,
        parameters=1000,
        updates=100,
        tokens_per_second=speed,
        seconds=60.0,
        curves={"train": points, "valid": points},
        start=Start(commands=(f"fairseq-train {dataset} --attention {mixer} --seed {seed}",)),
    )


@pytest.fixture
def made_up():
    found = [
        run(family, mixer, dataset, seed, test + seed + (family == "mega"), speed=test * 100)
        for family in ("transformer", "mega")
        for mixer, test in MIXERS.items()
        for dataset in ("cifar10-demo", "listops-demo")
        for seed in (1, 2)
    ]
    return [*found, run("mega", "csp", "mine", 1, 12.0)]


def test_the_summary_has_a_row_a_model_and_marks_the_best_of_each_column(made_up):
    rows = table(markdown_report(made_up), "Summary")
    # the data sets as in the table of all, others behind them
    assert list(rows[0]) == [
        "model", "attention", "setting", "listops-demo", "cifar10-demo", "mine",
    ]  # fmt: skip
    shown = {(row["model"], row["attention"]): row for row in rows}
    assert len(rows) == len(shown) == 6
    assert shown["mega", "softmax"]["listops-demo"] == "**47.50 ± 0.71**"
    assert shown["transformer", "softmax"]["listops-demo"] == "46.50 ± 0.71"
    # one seed, 60 of 500 right; nothing to be better than
    assert shown["mega", "csp"]["mine"] == "12.00 (9.44 to 15.14)"
    assert shown["transformer", "nystrom"]["mine"] == ""
    assert str(shown).count("**") == 2 * 2


def test_the_results_of_a_data_set_begin_with_the_best(made_up):
    rows = table(markdown_report(made_up), "Results")
    listops = [row for row in rows if row["data set"] == "listops-demo"]
    order = ["softmax", "softmax", "csp", "csp", "nystrom", "nystrom"]
    assert [row["attention"] for row in listops] == order
    assert [row["tokens/s"] for row in listops][:3] == ["**4,500**", "**4,500**", "4,000"]
    assert rows[0] is not listops[-1] and rows[-1]["data set"] == "mine"


@pytest.mark.parametrize(
    ("right", "examples", "low", "high"),
    # by hand: (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), z = 1.96
    [(50, 100, 0.4038, 0.5962), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1)],
)
def test_intervals(right, examples, low, high):
    assert wilson(right / examples, examples) == pytest.approx((low, high), abs=1e-4)


class Page(HTMLParser):
    """What a page has: ids, what its links lead to, and its elements by name."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.targets, self.tags, self.open = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if attrs.get("href", "").startswith("#"):
            self.targets.add(attrs["href"][1:])
        if tag not in ("meta", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "path":
            assert self.open.pop() == tag


def test_the_page_is_whole(made_up, tmp_path):
    write_html(made_up, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert not page.open
    # each seed leads to its command
    assert page.targets == set(page.ids) and len(set(page.ids)) == len(page.ids) == len(made_up)
    for each in made_up:
        assert f"<pre>{each.start.commands[0]}</pre>" in text
    # what is sorted by stands in the cells, whatever is shown
    sorts = [float(attrs["data-sort"]) for tag, attrs in page.tags if "data-sort" in attrs]
    assert {47.5, 46.5, 12.0, 4500.0} <= set(sorts)
    assert sum(tag == "button" for tag, _ in page.tags) == sum(tag == "th" for tag, _ in page.tags)
    # the summary comes first
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles[0] == "Summary" and titles.index("Learning curves") < titles.index("Runs")
    # no cell has another setting, so there is no column of them
    assert ">setting</button>" not in text
    assert text.count("prefers-color-scheme: dark") == 2


def test_curves_have_a_line_a_seed_and_a_name_a_cell(made_up):
    found = curves.drawn([cell for cell in cells(made_up) if "listops" in cell.runs[0].data])
    picture = ElementTree.fromstring(curves.drawing(found))
    groups = [e.get("data-cell") for e in picture.iter() if e.get("data-cell")]
    assert groups == [str(k) for k in range(6)] * 2
    lines = [e for e in picture.iter("{http://www.w3.org/2000/svg}polyline")]
    # two panels and the legend
    assert len(lines) == 2 * 6 * 2 + 6
    texts = ["".join(e.itertext()) for e in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[-6:] == [cell.name for cell in found]
    # every point is inside the axes
    for line in lines[:-6]:
        for x, y in (map(float, point.split(",")) for point in line.get("points").split()):
            assert curves.LEFT <= x <= curves.WIDTH - curves.RIGHT
            assert curves.TOP <= y <= curves.HEIGHT - curves.BOTTOM


@pytest.mark.parametrize(
    ("low", "high"), [(0, 7), (0, 9000), (10, 45.3), (49.9, 50.1), (50, 50), (0, 1), (0, 250_000)]
)
def test_ticks_are_round_and_enclose_the_range(low, high):
    ticks = curves._ticks(low, high)
    assert ticks[0] <= low and high <= ticks[-1]
    assert 2 <= len(ticks) <= 8
    assert len({round(b - a, 6) for a, b in zip(ticks, ticks[1:], strict=False)}) == 1


def test_a_long_curve_keeps_its_last_point():
    curve = [(update, 1.0) for update in range(1, 10_002)]
    thinned = curves._thinned(curve)
    assert len(thinned) <= curves.MOST_POINTS + 1
    assert (thinned[0], thinned[-1]) == (curve[0], curve[-1])
