"""Where train_lra.sh keeps a run and what it writes down there, which run it resumes, and how it
shares an update out.
"""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from fairseq_csp import train_lra
from fairseq_csp.errors import UserError
from fairseq_csp.recipes import __main__ as recipes
from fairseq_csp.recipes.arguments import parse_arguments
from fairseq_csp.recipes.flags import flags
from fairseq_csp.recipes.lra import LAPTOP, stages
from tests.helpers.commands import ENVIRONMENT, ROOT

CELL = ["model_name=mega", "dataset_name=listops"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(train_lra, "ROOT", tmp_path)
    return tmp_path


def trainings(*arguments):
    choice = parse_arguments([*CELL, *arguments])
    return choice, train_lra._trainings(choice, 0)


def run_directory(*arguments):
    choice, found = trainings(*arguments)
    return train_lra._run_directory(choice, found[-1].values)


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
    for arguments, name in (([], "listops"), (["preset=demo"], "listops-demo")):
        run = run_directory("resume=yes", *arguments)
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
            train_lra._write_down(record, CELL, {tmp_path: command}, {})
    *_, start = map(json.loads, (tmp_path / "command.jsonl").read_text().splitlines())
    assert start["seed"] == 7
    assert start["arguments"] == CELL
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


@pytest.mark.parametrize(("preset", "name"), [("paper", "listops"), ("demo", "listops-demo")])
def test_the_printed_command_reads_the_data_of_its_preset(preset, name, capsys):
    assert recipes.main(["mega", "listops", preset]) == 0
    assert capsys.readouterr().out.startswith(f"fairseq-train lra_data/{name} ")


def test_a_run_keeps_what_it_has_every_64_000_examples():
    (stage,) = stages("mega", "path-x")
    values = flags("mega", "path-x", stage.recipe)
    assert values[values.index("--save-interval-updates") + 1] == "133"
    assert values[values.index("--keep-interval-updates") + 1] == "1"


@pytest.mark.parametrize(
    ("dataset", "gpus", "expected"),
    [
        ("aan", 4, ["--update-freq", "2"]),
        ("cifar10", 2, ["--batch-size", "25"]),
        ("path-x", 8, ["--update-freq", "1"]),
    ],
)
def test_several_gpus_share_the_update_of_one(dataset, gpus, expected):
    (stage,) = stages("mega", dataset)
    assert train_lra._shared_out(stage.recipe, gpus) == expected


def test_an_update_that_cannot_be_shared_is_refused():
    (stage,) = stages("mega", "cifar10")
    with pytest.raises(UserError, match="50 x 1 examples"):
        train_lra._shared_out(stage.recipe, 4)


def started(run, *arguments, status=None, updates=None):
    """Leave a run as these arguments leave it; ``status`` is how it ended."""
    _, found = trainings(f"save_dir={run}", *arguments)
    commands = train_lra._commands(found, run)
    with train_lra._reserved(run) as record:
        train_lra._write_down(record, arguments, commands, train_lra._changed(run, commands))
    if status is not None:
        train_lra._write_result(run, {"exit_status": status})
    if updates is not None:
        history = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}}
        place = {"epoch": 1, "iterations_in_epoch": 0}
        state = {
            "model": {"weight": torch.zeros(1)},
            "cfg": {},
            "optimizer_history": [history | {"num_updates": updates}],
            "extra_state": {"train_iterator": place},
        }
        torch.save(state, run / "checkpoint_last.pt")


def records(run):
    return [json.loads(line) for line in (run / "command.jsonl").read_text().splitlines()]


CHANGES = {
    "seed": (["seed=1"], "--seed was 0 and is 1"),
    "rate": (["--", "--lr", "0.5"], "--lr was 0.001 and is 0.5"),
    "shift": (["--", "--csp-shift=none"], "--csp-shift was not given and is none"),
    "data": (["data_dir=/d/x"], f"data was {train_lra.ROOT}/lra_data/listops and is /d/x"),
    "switch": (["--", "--keep-padding"], "--keep-padding was not given and is given"),
    "fewer": (["--", "--max-update", "9"], "--max-update was 90000 and is 9"),
}


@pytest.mark.parametrize(("arguments", "told"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("ended", [{"status": 0}, {"updates": 90_000}, {"status": 1, "updates": 9}])
def test_a_finished_run_is_not_reported_under_other_flags(tmp_path, caplog, arguments, told, ended):
    started(tmp_path, **ended)
    started(tmp_path)
    assert not caplog.messages and "changed" not in records(tmp_path)[-1]
    if ended.get("status") == 1:
        started(tmp_path, *arguments)
        (message,) = caplog.messages
        assert message == f"{tmp_path} goes on with other flags than before: {told}"
        assert len(records(tmp_path)[-1]["changed"]) == 1
        return
    with pytest.raises(UserError, match="is finished, and was trained with other flags: ") as error:
        started(tmp_path, *arguments)
    assert told in str(error.value)
    assert len(records(tmp_path)) == 2


def test_a_finished_run_can_be_trained_further(tmp_path, caplog):
    started(tmp_path, status=0)
    started(tmp_path, "--", "--max-update", "100000")
    assert records(tmp_path)[-1]["changed"] == {"--max-update": ["90000", "100000"]}
    assert "--max-update was 90000 and is 100000" in caplog.text


def test_where_a_run_is_logged_is_no_change(tmp_path, caplog):
    started(tmp_path, status=0)
    started(tmp_path, "--", "--log-interval", "7", "--num-workers", "0", "--log-format", "json")
    assert not caplog.messages


@pytest.mark.parametrize("content", ["", "half a li", "[]\n"])
def test_a_record_that_cannot_be_read_stops_nothing(tmp_path, content):
    (tmp_path / "command.jsonl").write_text(content)
    started(tmp_path)


@pytest.mark.parametrize(
    "name", ["command.jsonl", "result.json", "train.log", "checkpoint_best.pt"]
)
def test_a_directory_where_a_file_belongs(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is no file: remove it, or name another save_dir"):
        run_directory(f"save_dir={tmp_path}")


def test_a_pipe_where_a_file_belongs(tmp_path):
    os.mkfifo(tmp_path / "command.jsonl")
    with pytest.raises(UserError, match="command.jsonl is no file"):
        run_directory(f"save_dir={tmp_path}")


def test_a_file_where_a_directory_belongs(tmp_path):
    (tmp_path / "tensorboard").touch()
    with pytest.raises(UserError, match="tensorboard is no directory"):
        run_directory(f"save_dir={tmp_path}")


def test_a_record_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    started(tmp_path)
    before = (tmp_path / "command.jsonl").read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:10]))
    with pytest.raises(UserError, match=r"command\.jsonl could not be written \(No space left"):
        started(tmp_path)
    assert (tmp_path / "command.jsonl").read_bytes() == before


@pytest.mark.parametrize("dataset", LAPTOP)
def test_each_stage_starts_from_the_one_before(tmp_path, dataset):
    choice = parse_arguments(["model_name=mega", f"dataset_name={dataset}", "preset=laptop"])
    found = train_lra._trainings(choice, 0)
    commands = train_lra._commands(found, tmp_path)
    *earlier, last = commands
    assert last == tmp_path
    assert all(directory.parent == tmp_path / "stages" for directory in earlier)
    assert len({training.data for training in found}) >= len(found) - 1
    for before, command in zip([None, *earlier], commands.values(), strict=True):
        start = train_lra._last(command, "--finetune-from-model")
        assert start == (str(before / "checkpoint_best.pt") if before else None)
        updates = int(train_lra._last(command, "--max-update"))
        assert int(train_lra._last(command, "--save-interval-updates")) == updates // 10


def test_files_where_it_is_called_are_not_run(tmp_path):
    for name in ("torch", "fairseq_csp", "fairseq", "json", "runpy", "preprocess"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('run from where it is called')")
    answer = subprocess.run(
        ["bash", ROOT / "train_lra.sh", *CELL, "gpus=9"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert "gpus is 9, but " in answer.stderr
    assert answer.returncode == 1


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, None),
    ],
)
def test_threads_do_not_spin_for_long_unless_asked_to(tmp_path, given, spins):
    """Of a training's environment: beside other programs, spinning threads wait for each other."""
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\ncase "$*" in *fairseq_csp.train_lra*) env ;; esac\n')
    python.chmod(0o755)
    theirs = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "MALLOC_MMAP_MAX_")
    kept = {key: value for key, value in ENVIRONMENT.items() if key not in theirs}
    environment = kept | given | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "train_lra.sh"), *CELL]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    values = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
    assert values.get("GOMP_SPINCOUNT") == spins
    assert values["MALLOC_MMAP_MAX_"] == "0"
