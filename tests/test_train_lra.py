"""Where train_lra.sh keeps a run, which one it resumes, and how it shares an update out."""

import pytest

from fairseq_csp import train_lra
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
