"""The documents list every mixer as it is."""

import re

import pytest

from fairseq_csp.mixers import COSTS, published_table, table
from fairseq_csp.modules.attention import ATTENTION_REGISTRY
from tests.helpers.commands import ROOT, call


@pytest.fixture(scope="module", autouse=True)
def own():
    """Those of the repository: a file that somebody lays beside them is theirs to document."""
    folder = ROOT / "fairseq_csp" / "modules" / "attention"
    tracked = call("git", "-C", folder, "ls-files", ".").stdout.split()
    names = {
        name.removesuffix(".py") for name in tracked or [f"{n}.py" for n in ATTENTION_REGISTRY]
    }
    return names & set(ATTENTION_REGISTRY)


def test_tables_are_current(own, monkeypatch):
    others = set(ATTENTION_REGISTRY) - own
    for name in others:
        monkeypatch.delitem(ATTENTION_REGISTRY, name)
    text = (ROOT / "docs" / "mixers.md").read_text()
    assert table() in text
    assert published_table() in text


def test_the_readme_has_a_line_for_each(own):
    section = (ROOT / "README.md").read_text().partition("## Mixers")[2].partition("\n## ")[0]
    assert re.findall(r"^- `(\w+)`: ", section, re.MULTILINE) == sorted(own)


def test_each_has_its_cost(own):
    assert set(COSTS) == own
