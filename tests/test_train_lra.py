"""Where train_lra.sh keeps a run and what it writes down there, which run it resumes, and how it
shares an update out.
"""

import errno
import json
import os
import subprocess
import sys

import psutil
import pytest

from fairseq_csp import recipes, train_lra
from fairseq_csp.errors import UserError
from fairseq_csp.recipes import parse_words

CELL = ["model_name=mega", "dataset_name=listops"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(train_lra, "ROOT", tmp_path)
    return tmp_path


def run_directory(*words):
    choice = parse_words([*CELL, *words])
    return train_lra._run_directory(choice, train_lra._training_flags(choice, 0))


def test_a_new_run_has_a_directory_of_its_own(root):
    run = run_directory()
    assert run.is_dir()
    assert run.parent == root / "outputs" / "listops" / "mega_lra_listop-csp"


def test_flags_behind_the_dashes_name_the_run(root):
    run = run_directory("attention=default", "--", "--attention=laplace")
    assert run.parent.name == "mega_lra_listop-laplace"


def test_resume_takes_the_newest_run_of_the_same_set(root):
    for name in ("outputs/listops", "outputs/listops-demo"):
        for time in ("2026-01-02_00-00-00", "2026-01-03_00-00-00"):
            (root / name / "mega_lra_listop-csp" / time).mkdir(parents=True)
    for words, name in (([], "listops"), (["preset=demo"], "listops-demo")):
        run = run_directory("resume=yes", *words)
        assert run == root / "outputs" / name / "mega_lra_listop-csp" / "2026-01-03_00-00-00"
    with pytest.raises(UserError, match="no run in"):
        run_directory("resume=yes", "attention=default")


def test_two_do_not_train_in_one_directory(tmp_path):
    def reserve():
        with train_lra._reserved(tmp_path):
            pass

    with (
        train_lra._reserved(tmp_path),
        pytest.raises(UserError, match="another process trains in"),
    ):
        reserve()
    reserve()


def test_a_start_is_written_down(tmp_path):
    command = ["fairseq-train", "data", "--seed", "0", "--seed=7"]
    for _ in range(2):
        with train_lra._reserved(tmp_path) as record:
            train_lra._write_down(record, CELL, command)
    *_, start = map(json.loads, (tmp_path / "command.jsonl").read_text().splitlines())
    assert start["seed"] == 7
    assert start["words"] == CELL
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True
    )
    installed = {entry["name"]: entry["version"] for entry in json.loads(installed.stdout)}
    assert {"torch", "numpy"} < set(start["versions"])
    assert set(start["versions"]) & {"fairseq", "fairseq-fixed", "ve-fairseq"}
    assert start["versions"].items() <= installed.items()
    git = ["git", "-C", train_lra.ROOT, "describe", "--always", "--dirty"]
    revision = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    assert start["revision"] == (revision or None)


def test_a_result_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    train_lra._write_result(tmp_path, {"exit_status": 0})

    def fail(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"result\.json could not be written \(No space left on"):
        train_lra._write_result(tmp_path, {"exit_status": 1})
    (left,) = tmp_path.iterdir()
    assert json.loads(left.read_text()) == {"exit_status": 0}


def test_the_training_ends_with_what_started_it():
    code = (
        "import subprocess, sys; from fairseq_csp.train_lra import _end_with_parent;"
        "child = subprocess.Popen(['sleep', '600'], preexec_fn=_end_with_parent);"
        "print(child.pid, flush=True); child.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    child.wait(60)


@pytest.mark.parametrize(("preset", "name"), [("paper", "listops"), ("demo", "listops-demo")])
def test_the_printed_command_reads_the_data_of_its_preset(preset, name, capsys):
    assert recipes.main(["mega", "listops", preset]) == 0
    assert capsys.readouterr().out.startswith(f"fairseq-train lra_data/{name} ")


def test_a_run_keeps_what_it_has_every_64_000_examples():
    values = recipes.flags("mega", "path-x")
    assert values[values.index("--save-interval-updates") + 1] == "133"
    assert values[values.index("--keep-interval-updates") + 1] == "1"


@pytest.mark.parametrize(
    ("dataset", "gpus", "flags"),
    [
        ("aan", 4, ["--update-freq", "2"]),
        ("cifar10", 2, ["--batch-size", "25"]),
        ("path-x", 8, ["--update-freq", "1"]),
    ],
)
def test_several_gpus_share_the_update_of_one(dataset, gpus, flags):
    choice = parse_words(["model_name=mega", f"dataset_name={dataset}"])
    assert train_lra._shared_out(choice, gpus) == flags


def test_an_update_that_cannot_be_shared_is_refused():
    choice = parse_words(["model_name=mega", "dataset_name=cifar10"])
    with pytest.raises(UserError, match="50 x 1 examples"):
        train_lra._shared_out(choice, 4)
