"""``python -m benchmarks.mixers`` through its command, at tiny sizes."""

import json
import sys

from tests.helpers.commands import succeed


def test_a_table_of_mixers_and_pictures(tmp_path):
    log = succeed(
        sys.executable, "-m", "benchmarks.mixers", "--tiny", "--rounds", "1", "--budget", "0",
        "--threads", "1", "--only", "^(csp|softmax) ", "--json", tmp_path / "mixers.json",
        "--plot", tmp_path / "pictures",
    )  # fmt: skip
    rows = [line.split(" | ") for line in log.splitlines() if line.startswith(("| csp", "| soft"))]
    assert [(row[0].strip("| "), row[1]) for row in rows] == [
        ("csp", "16"), ("csp", "32"), ("softmax", "16"), ("softmax", "32"),
    ]  # fmt: skip
    written = json.loads((tmp_path / "mixers.json").read_text())["rows"]
    assert all(row["ours"]["seconds"] > 0 for row in written)
    assert [row["tokens"] for row in written] == [64] * 4
    for name in ("mixers-time.png", "mixers-memory.png"):
        assert (tmp_path / "pictures" / name).stat().st_size > 1000
