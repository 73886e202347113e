"""The command for several processes in docs/reproduce.md, on two CPU processes."""

import re
import subprocess

from tests.helpers.commands import ENVIRONMENT, ROOT, SMALL, logged


def test_torchrun_as_documented(tiny_listops, tmp_path):
    text = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"((?:^    .*\n)*^    .*gloo.*\n(?:^    .*\n)*)", text, re.MULTILINE)
    flags = ["--batch-size", "8", "--log-format", "json", "--log-interval", "1", *SMALL]
    for ours, tests in (
        (
            "recipes mega listops)",
            f"recipes mega listops | sed 's|lra_data/listops|{tiny_listops}|')",
        ),
        ("--max-update 20", f"--max-update 3 {' '.join(flags)}"),
        ("outputs/two-processes", str(tmp_path / "run")),
    ):
        assert block.count(ours) == 1
        block = block.replace(ours, tests)
    answer = subprocess.run(
        ["bash", "-c", block],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
        timeout=300,
    )
    log = answer.stdout + answer.stderr
    assert answer.returncode == 0, log
    steps = logged(log, "train_inner")
    assert [step["num_updates"] for step in steps] == ["1", "2", "3"]
    # each update is of both processes' batches, of 8 at most
    assert all(float(step["bsz"]) > 8 for step in steps)
    assert (tmp_path / "run" / "checkpoint_best.pt").exists()
