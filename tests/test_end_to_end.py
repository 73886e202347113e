"""The main job through the real commands, on small data that the tests generate."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch

from tests.helpers.commands import (
    ROOT,
    SMALL,
    call,
    generate_listops,
    logged,
    train,
    validate,
)

README = (ROOT / "README.md").read_text(encoding="utf-8")

CELL = ["model_name=mega", "dataset_name=aan"]


@pytest.fixture(scope="session")
def listops(tmp_path_factory):
    # a name that a careless script would trip over
    return generate_listops(tmp_path_factory.mktemp("data") / "list ops $(x)")


def test_resumed_training_equals_uninterrupted(listops, tmp_path):
    whole = train(listops, tmp_path / "whole", "--max-update", "6")
    train(listops, tmp_path / "parts", "--max-update", "3")
    resumed = train(listops, tmp_path / "parts", "--max-update", "6")
    assert "Loaded checkpoint" in resumed

    losses = {step["num_updates"]: step["loss"] for step in logged(whole, "train_inner")}
    again = {step["num_updates"]: step["loss"] for step in logged(resumed, "train_inner")}
    assert sorted(losses) == ["1", "2", "3", "4", "5", "6"]
    assert again == {number: losses[number] for number in ("4", "5", "6")}
    weights = [
        torch.load(tmp_path / run / "checkpoint_last.pt", weights_only=True)["model"]
        for run in ("whole", "parts")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    result = validate(listops, tmp_path / "whole" / "checkpoint_last.pt", "valid")
    assert result["valid_loss"] == logged(whole, "valid")[-1]["valid_loss"]
    # no example is lost to a batch that is not full
    assert result["valid_bsz"] == "21"


def test_bfloat16_trains_on_a_cpu(listops, tmp_path):
    log = train(listops, tmp_path / "run", "--max-update", "2", "--bf16")
    assert len(logged(log, "train_inner")) == 2
    weights = torch.load(tmp_path / "run" / "checkpoint_last.pt", weights_only=True)["model"]
    # fairseq widens what it saves
    assert all(torch.equal(weight, weight.bfloat16().float()) for weight in weights.values())
    result = validate(listops, tmp_path / "run" / "checkpoint_last.pt", "valid")
    assert float(result["valid_loss"]) == pytest.approx(
        float(logged(log, "valid")[-1]["valid_loss"]), abs=0.02
    )


def test_train_lra_trains_tests_and_resumes(listops, tmp_path):
    run = tmp_path / "a run; of 'mine'"
    command = [
        "bash", ROOT / "train_lra.sh", "model_name=mega", "dataset_name=listops", "preset=demo",
        f"data_dir={listops}", f"save_dir={run}", "seed=3", "--", *SMALL,
    ]  # fmt: skip
    first = call(*command, "--max-update", "2")
    assert first.returncode == 0, first.stderr
    # nothing but the one last line after fairseq's own output
    *_, last = first.stdout.splitlines()
    name, arch, attention, accuracy, examples, checkpoint = last.split(" | ")
    assert (name, arch, attention) == (listops.name, "mega_lra_listop", "csp")
    assert examples == "21 examples"
    assert checkpoint == str(run / "checkpoint_best.pt")
    again = validate(listops, checkpoint, "test")
    assert accuracy == f"test accuracy {float(again['test_accuracy']):.3f} %"
    kept = json.loads((run / "result.json").read_text())
    assert kept["exit_status"] == 0
    assert f"test accuracy {kept['accuracy']:.3f} %" == accuracy

    assert {path.name for path in run.iterdir()} >= {
        "checkpoint_best.pt", "checkpoint_last.pt", "command.jsonl", "tensorboard", "train.log",
    }  # fmt: skip
    assert list(run.glob("tensorboard/*/events.*"))

    second = call(*command, "--max-update", "4")
    assert second.returncode == 0, second.stderr
    assert f"resuming {run}" in second.stderr
    records = [json.loads(line) for line in (run / "command.jsonl").read_text().splitlines()]
    assert len(records) == 2
    assert "--max-update 4" in records[1]["command"]
    # the command that was printed is the one that was run
    assert records[1]["command"] in second.stderr
    assert shlex.split(records[1]["command"])[1] == str(listops)


def test_paper_preset_says_how_long_it_takes(listops, tmp_path):
    answer = call(
        "bash", ROOT / "train_lra.sh", "model_name=mega", "dataset_name=listops",
        f"data_dir={listops}", f"save_dir={tmp_path / 'run'}", "gpus=0",
        "--", *SMALL, "--max-update", "1", "--batch-size", "8",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert re.search(r"one update takes about \d+\.\d s here.*preset=demo", answer.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=mega"], "the keys are benchmark, model_name, dataset_name"),
        (
            ["model_name=bert", "dataset_name=aan"],
            "flash, lstm, mega, transformer, transformer_rope",
        ),
        (["model_name=mega", "dataset_name=imdb"], "listops, imdb-4000, aan"),
        (["model_name=mega", "dataset_name=aan", "attention=x"], "csp, "),
        (["model_name=lstm", "dataset_name=aan", "attention=csp"], "it must be one of default"),
        (["model_name=mega", "dataset_name=aan", "seed=-1"], "seed is '-1'; it must be a whole"),
        ([*CELL, "seed=4294967296"], "a whole number from 0 to 4,294,967,295"),
        ([*CELL, "seed=" + "9" * 5000], "a whole number from 0 to 4,294,967,295"),
        ([*CELL, "seed=\u0663"], "a whole number from 0 to 4,294,967,295"),
        ([*CELL, "gpus=1e3"], "gpus is '1e3'; it must be a whole number from 0 to 1,000"),
        ([*CELL, "preset=laptop"], "preset=laptop has no recipe for aan; it has one for listops"),
        ([*CELL, "save_dir=" + "a" * 300], "save_dir has a name of 300 bytes; a file system takes"),
        ([*CELL, "save_dir=x/" + "\u00e4" * 128], "save_dir has a name of 256 bytes"),
        ([*CELL, "save_dir=" + "a/" * 3000], "and 4,000 for the whole path"),
        ([*CELL, b"save_dir=\xff"], "which is not UTF-8: choose a name of ordinary characters"),
        ([*CELL, "save_dir=a\nb"], "with a character that cannot be printed"),
        ([*CELL, "save_dir=${HOME}"], "which fairseq would replace"),
        ([*CELL, "data_dir=a:b"], "fairseq takes a colon for two directories"),
        (
            [*CELL, "user_dir=nowhere"],
            "user_dir is 'nowhere', which is no directory with an __init__",
        ),
        ([*CELL, "--", "--user-dir", "x"], "write user_dir="),
        (["model_name=mega", "dataset_name=aan", "seed"], "write seed=VALUE"),
        (["model_name=mega", "dataset_name=aan", "--", "--save-dir", "x"], "write save_dir="),
    ],
)
def test_bad_arguments_end_before_anything_is_installed(arguments, message, tmp_path):
    # a python3 without any package: what is missing then must not matter
    (tmp_path / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    answer = subprocess.run(
        ["bash", ROOT / "train_lra.sh", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
    )
    assert answer.returncode == 2
    assert message in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_help_names_every_key():
    answer = call("bash", ROOT / "train_lra.sh", "--help")
    assert answer.returncode == 0
    for key in ("model_name", "dataset_name", "attention", "data_dir", "save_dir", "seed",
                "preset", "gpus", "resume", "download", "user_dir"):  # fmt: skip
        assert f"\n    {key} " in answer.stdout
