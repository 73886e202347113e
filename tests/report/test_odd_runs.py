"""One odd run does not take the report down: it is listed as such, the others are shown."""

import csv
import json
import os
import subprocess
import sys
import zipfile
from xml.etree import ElementTree

import pytest
import torch

from fairseq_csp.analysis.__main__ import main as analyse
from fairseq_csp.output import csv_text, printable
from fairseq_csp.report.__main__ import main
from fairseq_csp.report.logs import Point, read_log
from tests.helpers.commands import ENVIRONMENT, ROOT
from tests.report.test_report import another, report, table

DIGITS = "9" * 400
DEEP = "[" * 100_000


RESULTS = [
    '{"exit_status": "0"}',
    '{"exit_status": 1e999}',
    f'{{"exit_status": {DIGITS}}}',
    f'{{"exit_status": {"9" * 5000}}}',
    '{"exit_status": 0, "accuracy": "high"}',
    '{"exit_status": 0, "accuracy": NaN}',
    '{"exit_status": 0, "accuracy": 1e999}',
    '{"exit_status": 0, "accuracy": -1}',
    '{"exit_status": 0, "accuracy": true}',
    '{"exit_status": 0, "accuracy": [50.0]}',
    f'{{"exit_status": 0, "accuracy": {DIGITS}}}',
    '{"exit_status": 0, "accuracy": 50.0, "examples": "all"}',
    '{"exit_status": 0, "accuracy": 50.0, "examples": 0}',
    '{"exit_status": 0, "accuracy": 50.0, "examples": 2.5}',
    "[" * 100_000,
    '{"a":' * 100_000,
]
RECORDS = [
    {"started": 5},
    {"command": ["fairseq-train"]},
    {"stages": "fairseq-train"},
    {"stages": [["fairseq-train"]]},
    {"changed": ["--lr"]},
    {"revision": 1.5},
    {"machine": {}},
    {"gpus": "A100"},
    {"gpus": [1, None]},
]
FLAGS = [
    ("common", "seed", "one"),
    ("common", "seed", -1),
    ("common", "seed", int(DIGITS)),
    ("model", "_name", ["mega_lra_listop"]),
    ("model", "attention", 3),
    ("model", "sentence_class_num", "ten"),
    ("model", "sentence_class_num", 0),
    ("model", "encoder_embed_dim", int(DIGITS)),
    ("model", "encoder_embed_dim", {"a": 1}),
    ("task", "data", 7),
    ("task", "data", "/da\0ta"),
    ("optimization", "max_update", "all"),
    ("optimization", "lr", [[0.1]]),
    ("optimization", "lr", [0.1] * 1000),
]
STATES = [
    ("extra_state", "text"),
    ("extra_state", {"previous_training_time": "long"}),
    ("extra_state", {"previous_training_time": float("nan")}),
    ("extra_state", {"metrics": "text"}),
    ("extra_state", {"metrics": [("default", [(0, "wpb", "M", {"sum": "x"})])]}),
    ("optimizer_history", "text"),
    ("optimizer_history", [{"num_updates": 1e300}]),
    ("optimizer_history", [3]),
    ("model", 3),
    ("cfg", []),
    ("cfg", {"model": "mega"}),
]


def statuses(runs, capsys):
    """The status of each run by its name, without that of the whole one, which is as ever."""
    found = {row["run"].rpartition("/")[2]: row for row in table(report(capsys, runs), "Runs")}
    assert found.pop("seed-1")["status"] == "not tested"
    for form in ("report.md", "report.html"):
        assert main([str(runs), "--out", str(runs.parent / form)]) == 0
        assert "| 14.29 |" in (text := (runs.parent / form).read_text()) or ">14.29</td>" in text
    return {name: row["status"] for name, row in found.items()}


def test_odd_records(runs, capsys):
    for k, content in enumerate(RESULTS):
        (another(runs, f"result-{k}") / "result.json").write_text(content)
    for k, record in enumerate(RECORDS):
        (another(runs, f"record-{k}") / "command.jsonl").write_text(json.dumps(record))
    found = statuses(runs, capsys)
    for k, content in enumerate(RESULTS):
        status = found.pop(f"result-{k}")
        assert status.startswith("record cannot be read (result.json"), content[:50]
    for k, (key,) in enumerate(RECORDS):
        status = found.pop(f"record-{k}")
        assert status.startswith(f"record cannot be read (command.jsonl: {key} is "), key
    assert not found


def test_what_is_no_file_or_too_large_does_not_hang(runs, capsys):
    names = ("command.jsonl", "result.json", "checkpoint_last.pt")
    for name in names:
        for kind in ("pipe", "directory", "large"):
            file = another(runs, f"{name}-{kind}") / name
            file.unlink(missing_ok=True)
            if kind == "pipe":
                os.mkfifo(file)
            elif kind == "directory":
                file.mkdir()
            else:
                with open(file, "wb") as sparse:
                    sparse.truncate(1 << 40)
    found = statuses(runs, capsys)
    assert len(found) == 9
    assert all("cannot be read" in status for status in found.values()), found


def test_odd_flags(runs, capsys):
    for k, (group, key, value) in enumerate(FLAGS):
        run = another(runs, f"checkpoint-{k}", {(group, key): value})
        # what fairseq-train prints of the flags, and nothing else
        config = torch.load(run / "checkpoint_last.pt", weights_only=True)["cfg"]
        config = {"_name": None, "common": config.pop("common"), **config}
        (runs / f"log-{k}").write_text(f"{config}\n".replace("\0", "\\0"))
        (runs / f"log-{k}").rename(runs / f"log-{k}.log")
    for name in ("elsewhere.log", "odd-save-dir.log"):
        config["checkpoint"]["save_dir"] = 3 if name.startswith("odd") else "/else\0where"
        config["task"]["data"], config["optimization"]["lr"] = "/data", [0.1]
        (runs / name).write_text(f"{config}\n")
    found = statuses(runs, capsys)
    assert found.pop("elsewhere.log") == found.pop("odd-save-dir.log") == "no update was logged"
    for k, flag in enumerate(FLAGS):
        assert found.pop(f"checkpoint-{k}").startswith("checkpoint cannot be read ("), flag
        assert found.pop(f"log-{k}.log").startswith("log cannot be read ("), flag
    assert not found


def test_flags_that_hold_each_other_do_not_take_all_memory(runs, capsys):
    value = ["x"]
    for _ in range(60):
        value = [value, value]
    another(runs, "odd", {("model", "encoder_embed_dim"): value})
    assert "cannot be read" in statuses(runs, capsys)["odd"]


def test_odd_checkpoints(runs, capsys):
    for k, (key, value) in enumerate(STATES):
        for file in another(runs, f"state-{k}").glob("checkpoint_*.pt"):
            state = torch.load(file, weights_only=True)
            state[key] = value
            torch.save(state, file)
    found = statuses(runs, capsys)
    for k, state in enumerate(STATES):
        assert found.pop(f"state-{k}").startswith("checkpoint cannot be read ("), state
    assert not found


def test_a_compressed_checkpoint_is_not_unpacked(runs, capsys):
    file = another(runs, "odd") / "checkpoint_last.pt"
    with zipfile.ZipFile(file) as whole:
        entries = {entry.filename: whole.read(entry) for entry in whole.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as compressed:
        for name, content in entries.items():
            compressed.writestr(name, content)
    expected = "checkpoint cannot be read (it is compressed, as torch writes none)"
    assert statuses(runs, capsys) == {"odd": expected}


def test_odd_logs_are_no_runs(runs, capsys):
    (runs / "binary.log").write_bytes(bytes(range(256)) * 10_000)
    (runs / "deep.log").write_text("{'_name': None, 'common': {" + "[" * 200_000 + "\n")
    os.mkfifo(runs / "pipe.log")
    with open(runs / "large.log", "wb") as sparse:
        sparse.truncate(1 << 40)
    (runs / "gone.log").symlink_to(runs / "nothing")
    names = [row["run"].rpartition("/")[2] for row in table(report(capsys, runs), "Runs")]
    # the deep one begins as a log of fairseq-train does
    assert names == ["deep.log", "seed-1"]


def test_a_binary_log_of_a_run_leaves_its_checkpoint(runs, capsys):
    (another(runs, "odd") / "train.log").write_bytes(os.urandom(100_000))
    assert statuses(runs, capsys)["odd"] in ("not tested", "unfinished")


def test_odd_lines_of_a_log_are_no_points(tmp_path):
    file = tmp_path / "train.log"
    file.write_text(
        f"epoch 001:      2 / 4 loss=3.3, accuracy=15.9, num_updates={DIGITS}, lr=0.002\n"
        f"epoch 001:      2 / 4 loss=3.3, accuracy={DIGITS}, num_updates=2, lr=0.002\n"
        "epoch 001:      2 / 4 loss=3.3, accuracy=nan, num_updates=3, lr=0.002\n"
        "epoch 001:      2 / 4 loss=nan, accuracy=10, num_updates=4, lr=0.002\n"
        '{"epoch": 1, "loss": [], "accuracy": {}, "num_updates": "5"}\n'
        '{"epoch": 1, "loss": 3.3, "accuracy": 15.9, "num_updates": 1e999}\n'
        f'{{"epoch": {DEEP}\n'
    )
    # the accuracy of a run that diverged is one
    curves = read_log([file]).curves
    assert {split: list(curve) for split, curve in curves.items()} == {"train_inner": [4]}
    assert curves["train_inner"][4].accuracy == Point(0, 10).accuracy


NAMES = [
    rb"$\frac{$",
    b"not utf-8 \xff\xfe",
    b"two\nlines | and a bar",
    b"\x1b[31mred\x1b[0m",
    b"<img src=x onerror=alert(1)>",
    b"=1+1",
    b"x" * 250,
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
@pytest.mark.parametrize("where", ["run", "data"])
def test_odd_names(runs, capsys, name, where):
    root = os.fsencode(runs)
    if where == "run":
        os.rename(another(runs, "odd"), os.path.join(root, name))
    else:
        # as fairseq keeps the name: with what is not UTF-8 escaped
        another(runs, "odd", {("task", "data"): os.fsdecode(b"/data/" + name)})
    (runs / "odd.log").write_text("nothing")
    text = report(capsys, runs)
    rows = table(text, "Runs")
    assert [row["status"] for row in rows] == ["not tested"] * 2
    assert not set(text) - {c for c in text if c.isprintable() or c == "\n"}
    for form in ("report.md", "report.html"):
        assert main([str(runs), "--out", str(runs.parent / form)]) == 0
        written = (runs.parent / form).read_text(encoding="utf-8")
        assert "<img" not in written
        assert not set(written) - {c for c in written if c.isprintable() or c == "\n"}
    pictures = list((runs.parent / "report").glob("*.svg"))
    assert len(pictures) == (1 if where == "run" else 2)
    for picture in pictures:
        ElementTree.parse(picture)


def test_a_terminal_without_the_characters_is_no_fault(runs):
    answer = subprocess.run(
        [sys.executable, "-m", "fairseq_csp.report", runs],
        env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "mean ? standard deviation" in answer.stdout


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r"])
def test_formulas_are_text_in_tables(begin, tmp_path):
    (row,) = csv.DictReader(
        csv_text(["name", "number", "text"], [[f"{begin}SUM(1)", -0.5, "-0.5"]]).splitlines()
    )
    shown = printable(f"{begin}SUM(1)")
    assert row == {"name": f"'{shown}", "number": "-0.5", "text": "-0.5"}


def test_formulas_are_text_in_the_curves(runs):
    another(runs, "odd", {("model", "_name"): '=HYPERLINK("http://x")'})
    assert main([str(runs), "--out", str(runs.parent / "report.md")]) == 0
    with open(runs.parent / "report" / "listops-tiny.csv", newline="") as lines:
        names = {row["architecture"] for row in csv.DictReader(lines)}
    assert names == {"mega_lra_listop", '\'=HYPERLINK("http://x")'}


def test_odd_names_of_checkpoints_are_drawn(runs, tmp_path, monkeypatch):
    odd = b"=$\\frac{$ \xff.pt"
    os.rename(runs / "seed-1" / "checkpoint_best.pt", os.path.join(os.fsencode(tmp_path), odd))
    monkeypatch.chdir(tmp_path)
    assert analyse(["rank", os.fsdecode(odd), "--examples", "1", "--out", "rank.png"]) == 0
    with open("rank.csv", newline="") as lines:
        names = {row["checkpoint"] for row in csv.DictReader(lines)}
    assert names == {"'=$\\frac{$ \N{REPLACEMENT CHARACTER}.pt"}
