"""The documents list every mixer as it is."""

import re

from fairseq_csp.mixers import COSTS, published_table, table
from fairseq_csp.modules.attention import ATTENTION_REGISTRY
from tests.helpers.commands import ROOT


def test_tables_are_current():
    text = (ROOT / "docs" / "mixers.md").read_text()
    assert table() in text
    assert published_table() in text


def test_the_readme_has_a_line_for_each():
    section = (ROOT / "README.md").read_text().partition("## Mixers")[2].partition("\n## ")[0]
    assert re.findall(r"^- `(\w+)`: ", section, re.MULTILINE) == sorted(ATTENTION_REGISTRY)


def test_each_has_its_cost():
    assert set(COSTS) == set(ATTENTION_REGISTRY)
