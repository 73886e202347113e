"""The commands that draw what the mechanism does."""

import csv
import os
import subprocess
import sys
from collections import defaultdict

import pytest
import torch

from fairseq_csp.analysis.__main__ import main
from fairseq_csp.errors import UserError
from tests.helpers.commands import ENVIRONMENT, ROOT


def drawn(tmp_path, *words):
    """The lines of the CSV beside the picture that a command draws."""
    picture = tmp_path / "new" / "picture.png"
    assert main([*map(str, words), "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10000
    with open(picture.with_suffix(".csv"), newline="") as lines:
        return list(csv.DictReader(lines))


def test_reach_is_drawn(tmp_path):
    rows = drawn(tmp_path, "reach", "--positions", "64", "--channels", "8", "--layers", "3")
    assert len(rows) == 9
    last = {row["shift"]: int(row["positions_reached"]) for row in rows if row["layers"] == "3"}
    assert last["none"] == 2
    assert last["none"] < last["linear"] < last["exponential"]


def test_collapse_is_drawn(tmp_path):
    rows = drawn(
        tmp_path, "collapse", "--positions", "16", "--channels", "8", "--depth", "2", "--seeds", "2"
    )
    # stacks, mixings, seeds, and the input before the layers
    assert len(rows) == 3 * 4 * 2 * 3
    assert all(0 <= float(row["residual_norm"]) <= 1 for row in rows)


def test_maps_of_a_checkpoint_are_drawn(trained_run, tmp_path):
    rows = drawn(
        tmp_path, "maps", trained_run / "checkpoint_best.pt", "--longest", "40",
        "--channels", "0,5", "--layers", "1",
    )  # fmt: skip
    assert {row["model"] for row in rows} == {"mega csp"}
    assert {row["layer"] for row in rows} == {"1"}
    one = [row for row in rows if row["map"] == "channel 5"]
    assert {row["weight"] for row in one} == {"1"}
    inputs = sorted(int(row["input_position"]) for row in one)
    assert inputs == list(range(len(one)))


def test_maps_of_checkpoints_of_one_kind_are_told_apart(trained_run, runs, tmp_path):
    other = runs / "seed-1" / "checkpoint_best.pt"
    weights = torch.load(other, weights_only=True)
    weights["model"] = {name: -tensor for name, tensor in weights["model"].items()}
    torch.save(weights, other)
    rows = drawn(tmp_path, "maps", trained_run / other.name, other, "--longest", "40")
    maps = defaultdict(list)
    for row in rows:
        maps[row.pop("model")].append(row)
    first, second = maps
    assert first.endswith("seed-1/checkpoint_best.pt")
    assert second.endswith("runs/seed-1/checkpoint_best.pt")
    assert maps[first] != maps[second]


def test_rank_of_checkpoints_is_drawn(trained_run, tmp_path):
    checkpoints = [trained_run / name for name in ("checkpoint_best.pt", "checkpoint_last.pt")]
    rows = drawn(tmp_path, "rank", *checkpoints, "--examples", "3")
    assert [row["checkpoint"] for row in rows] == [str(file) for file in checkpoints for _ in "012"]
    assert [row["layers"] for row in rows] == ["0", "1", "2"] * 2
    for row in rows:
        assert 0 < float(row["residual_norm"]) <= 1
        assert 1 <= float(row["stable_rank"]) <= 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reach", "--out", "picture.svg"], "must end in .png"),
        (["collapse", "--channels", "10"], "multiple of 4 heads"),
        (["maps", "{run}/none.pt"], "is not there"),
        (["maps", "{run}/checkpoint_best.pt", "--longest", "2"], "raise --longest"),
        (["maps", "{run}/checkpoint_best.pt", "--example", "99"], "has 21 examples"),
        (["maps", "{run}/checkpoint_best.pt", "--example", "-1"], "has 21 examples"),
        (["maps", "{run}/checkpoint_best.pt", "--example", "-100000"], "has 21 examples"),
        (["maps", "{run}/checkpoint_best.pt", "--layers", "7"], "no layer 7: they are 0 to 1"),
    ],
)
def test_mistakes_are_one_sentence(trained_run, words, message):
    with pytest.raises(UserError, match=message):
        main([word.format(run=trained_run) for word in words])


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("reach", ("--positions", "--channels", "--layers", "--group-size")),
        ("collapse", ("--positions", "--channels", "--depth", "--seeds")),
        ("maps none.pt", ("--longest",)),
        ("rank none.pt", ("--examples",)),
    ],
)
def test_sizes_are_above_zero(command, flags, capsys):
    for flag in flags:
        for number in ("0", "-3"):
            with pytest.raises(SystemExit, match="2"):
                main([*command.split(), flag, number])
            assert f"argument {flag}: {number} is not above zero\n" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file/picture.png", "picture.png"])
def test_what_cannot_be_written_is_one_sentence(place, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "picture.png").mkdir()
    with pytest.raises(UserError, match=r"cannot be written \(.+\): choose another place"):
        main(["reach", "--positions", "8", "--layers", "1", "--out", str(tmp_path / place)])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "picture.png"]


def test_without_matplotlib_one_sentence_says_so(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('No matplotlib')\n")
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "fairseq_csp.analysis", "reach", "--out", tmp_path / "r.png"]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 1
    assert "matplotlib is not installed" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "r.png").exists()
