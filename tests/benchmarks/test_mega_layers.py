"""``python -m benchmarks.mega_layers`` through its command, at tiny sizes."""

import json
import sys

from benchmarks.mega_layer import public_mega
from tests.helpers.commands import succeed


def test_a_table_of_layers(tmp_path):
    log = succeed(
        sys.executable, "-m", "benchmarks.mega_layers", "--tiny", "--rounds", "1", "--budget", "0",
        "--threads", "1", "--only", "softmax", "--json", tmp_path / "layers.json",
    )  # fmt: skip
    (row,) = json.loads((tmp_path / "layers.json").read_text())["rows"]
    assert f"| {row['name']} |" in log
    there = [row["ours"], row["whole"]] + [row["public"]] * bool(public_mega())
    assert all(answer["seconds"] > 0 for answer in there)
    # all of them are the same layer
    assert len({answer["parameters"] for answer in there}) == 1
