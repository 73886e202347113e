"""Ablations: what they train, that they go on where they were stopped, and the table at the end."""

import json
import logging
import runpy
import shutil
import subprocess
import sys

import pytest
import torch
from fairseq import options

from fairseq_csp import ablations
from fairseq_csp.errors import UserError
from fairseq_csp.models.config import config_class
from fairseq_csp.models.lra import LRAModel
from fairseq_csp.recipes.arguments import parse_arguments
from fairseq_csp.recipes.benchmarks import BENCHMARKS
from tests.helpers.building import dictionary
from tests.helpers.commands import SMALL, succeed

FINISHED = {"exit_status": 0, "accuracy": 30.0}


@pytest.fixture
def started(trained_run, monkeypatch):
    """The arguments of every training that is asked for, which leaves a finished run at once."""
    asked = []

    def leave_a_run(command, **_):
        arguments = command[3:]
        choice = parse_arguments(arguments)
        asked.append(choice)
        run = ablations.Path(choice.save_dir)
        shutil.copytree(trained_run, run, dirs_exist_ok=True)
        (run / "command.jsonl").write_text(json.dumps({"arguments": arguments}) + "\n")
        (run / "result.json").write_text(json.dumps(FINISHED))
        state = torch.load(run / "checkpoint_last.pt", weights_only=True)
        state["cfg"]["common"]["seed"] = choice.seed
        if "--csp-shift" in choice.extra:
            state["cfg"]["model"]["csp_shift"] = choice.extra[1]
        torch.save(state, run / "checkpoint_last.pt")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(ablations.subprocess, "run", leave_a_run)
    return asked


def test_every_variant_is_trained_once_and_shown(started, tmp_path, capsys):
    command = ["shift", "--out", str(tmp_path), "--", "--max-update", "9"]
    assert ablations.main(command) == 0
    assert len(started) == 9
    assert {choice.extra for choice in started} == {
        (*flags, "--max-update", "9")
        for flags in ((), ("--csp-shift", "linear"), ("--csp-shift", "none"))
    }
    shown = capsys.readouterr().out
    for name in ("exponential", "linear", "none"):
        assert f"| csp | --csp-shift {name} | 0, 1, 2 |" in shown

    # again: nothing is left to do but what was not finished
    (tmp_path / "shift-linear" / "seed-1" / "result.json").unlink()
    started.clear()
    assert ablations.main(command) == 0
    assert [(choice.extra[1], choice.seed) for choice in started] == [("linear", 1)]
    assert capsys.readouterr().out == shown


def test_what_two_ablations_share_is_trained_once(started, tmp_path):
    for ablation in ("shift", "group-size", "order", "attention"):
        ablations.main([ablation, "--seeds", "1", "--out", str(tmp_path)])
    trained = [(choice.attention, choice.extra) for choice in started]
    assert len(trained) == len(set(trained)) == 9


def test_every_variant_makes_a_model():
    for name, variant in ablations.ABLATIONS["mixers"].items():
        cell = variant.model, variant.dataset
        (stage,) = BENCHMARKS["lra"].stages(*cell, variant.preset)
        flags = BENCHMARKS["lra"].flags(*cell, stage.recipe, variant.attention)
        parser = options.get_training_parser()
        args = options.parse_args_and_arch(parser, ["data", *flags, *variant.flags])
        cfg = config_class().from_namespace(args)
        assert LRAModel(cfg, dictionary(25) if cfg.input_type == "text" else None), name


def test_mixers_are_compared_in_both_models_and_on_both_sets(started, tmp_path):
    command = ["mixers", "--seeds", "1", "--out", str(tmp_path), "--only", "*-[cs]*"]
    assert ablations.main(command) == 0
    asked = {(choice.model_name, choice.dataset_name, choice.attention) for choice in started}
    for model in ("mega", "transformer_rope"):
        for dataset in ("listops", "cifar10"):
            assert (model, dataset, "sliceformer") in asked
    assert ("transformer_rope", "cifar10", "cga") in asked
    assert ("mega", "cifar10", "cga") not in asked
    assert ("mega", "cifar10", "spectral") in asked
    assert ("mega", "listops", "spectral") not in asked
    assert {(choice.dataset_name, choice.preset) for choice in started} == {
        ("listops", "demo"),
        ("cifar10", "small"),
    }
    assert len({choice.extra for choice in started}) == 1


def test_vision_is_compared_on_real_images(started, tmp_path):
    assert ablations.main(["vision", "--seeds", "1", "--out", str(tmp_path)]) == 0
    assert {(choice.benchmark, choice.data_name, choice.preset) for choice in started} == {
        ("vision", "cifar10-rgb", "laptop")
    }
    assert [(choice.attention, choice.extra) for choice in started] == [
        ("csp", ("--csp-shift", "linear")),
        ("csp", ("--csp-shift", "exponential")),
        ("softmax", ()),
        ("sliceformer", ()),
    ]


def test_runs_of_earlier_revisions_are_known_again(started, tmp_path):
    """What a run of an LRA data set is asked for begins as it always did."""
    run = tmp_path / "csp" / "seed-0"
    first = ["model_name=mega", "dataset_name=listops", "preset=demo", "attention=csp", "seed=0"]
    ablations.main(["shift", "--seeds", "1", "--out", str(tmp_path)])
    record = json.loads((run / "command.jsonl").read_text())
    assert record["arguments"] == [*first, f"save_dir={run}", "--"]


def test_a_pattern_that_matches_nothing(tmp_path):
    with pytest.raises(UserError, match="--only nonsense matches none of csp, shift-linear"):
        ablations.main(["shift", "--only", "nonsense", "--out", str(tmp_path)])


def test_runs_of_other_flags_are_not_taken_for_these(started, tmp_path):
    ablations.main(["shift", "--seeds", "1", "--out", str(tmp_path), "--", "--max-update", "9"])
    with pytest.raises(UserError, match="choose another --out"):
        ablations.main(["shift", "--seeds", "1", "--out", str(tmp_path)])


@pytest.mark.parametrize("name", ["command.jsonl", "result.json"])
def test_a_damaged_record_is_named(started, tmp_path, name):
    command = ["shift", "--seeds", "1", "--out", str(tmp_path)]
    ablations.main(command)
    (tmp_path / "csp" / "seed-0" / name).write_text("")
    with pytest.raises(UserError, match=f"csp/seed-0/{name} is empty or damaged"):
        ablations.main(command)


@pytest.mark.parametrize("record", [{"seed": 0}, {"arguments": None}])
def test_a_record_without_arguments_is_not_taken_for_these(started, tmp_path, record):
    run = tmp_path / "csp" / "seed-0"
    run.mkdir(parents=True)
    (run / "command.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match=r"made with other arguments \(none in command.jsonl\)"):
        ablations.main(["shift", "--seeds", "1", "--out", str(tmp_path)])


def test_where_no_run_can_be_made_one_sentence_says_so(tmp_path, capfd):
    (tmp_path / "file").touch()
    command = ["shift", "--out", str(tmp_path / "file" / "runs"), "--data", str(tmp_path)]
    assert ablations.main(command) == 1
    said = capfd.readouterr().err
    assert "csp/seed-0 cannot be made (Not a directory)" in said
    assert "Traceback" not in said


def test_data_that_is_not_there_is_not_made(started, tmp_path):
    with pytest.raises(UserError, match="--data is .*typo, which is no directory"):
        ablations.main(["shift", "--out", str(tmp_path), "--data", str(tmp_path / "typo")])
    assert not started
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seeds", "message"),
    [("0", "0 is not above zero"), ("-1", "-1 is not above zero"), ("x", "x is no whole number")],
)
def test_there_is_at_least_one_seed(started, tmp_path, capsys, seeds, message):
    with pytest.raises(SystemExit) as end:
        ablations.main(["shift", "--out", str(tmp_path), f"--seeds={seeds}"])
    assert end.value.code == 2
    assert f"argument --seeds: {message}" in capsys.readouterr().err


def test_an_interruption_ends_it_without_a_traceback(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupt)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["ablations", "shift", "--out", str(tmp_path)])
    monkeypatch.delitem(sys.modules, "fairseq_csp.ablations")
    with pytest.raises(SystemExit) as end:
        runpy.run_module("fairseq_csp.ablations", run_name="__main__")
    assert end.value.code == 130


@pytest.mark.parametrize("ablation", ablations.ABLATIONS)
def test_variants_are_asked_train_lra(ablation):
    for variant in ablations.ABLATIONS[ablation].values():
        choice = parse_arguments([*variant.cell("listops"), "--", *variant.flags])
        assert (choice.attention, choice.extra) == (variant.attention, variant.flags)


@pytest.mark.slow
def test_an_ablation_through_the_real_commands(tiny_listops, tmp_path):
    command = [
        sys.executable, "-m", "fairseq_csp.ablations", "order", "--seeds", "2", "--out", tmp_path,
        "--data", tiny_listops, "--", "--max-update", "2", *SMALL,
    ]  # fmt: skip
    shown = succeed(*command)
    assert "--csp-order shift_sort | 0, 1 |" in shown
    assert "--csp-order sort_shift | 0, 1 |" in shown
    again = succeed(*command)
    assert again.count(" is finished") == 4
