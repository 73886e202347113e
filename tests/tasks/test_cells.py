"""Every architecture on every task with every attention: trains, validates, resumes."""

import pytest
import torch

from tests.helpers.generated import write_images, write_text
from tests.helpers.running import TINY, train, validate

DATA = {
    "listop": lambda path: write_text(path, classes=10),
    "imdb": write_text,
    "aan": lambda path: write_text(path, documents=2),
    "cifar10": lambda path: write_images(path, classes=10),
    "pf32": write_images,
    "pf128": write_images,
}
ATTENTIONS = {
    "mega": (None, "csp", "softmax", "laplace", "relu2"),
    "flash": (None, "csp", "softmax", "laplace", "relu2"),
    "transformer": (None, "csp", "softmax"),
    "lstm": (None,),
}
CELLS = [
    pytest.param(family, task, attention, id=f"{family}-{task}-{attention or 'own'}")
    for family, attentions in ATTENTIONS.items()
    for task in DATA
    for attention in attentions
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The directory of each task's data."""
    return {task: write(tmp_path_factory.mktemp(task) / "data") for task, write in DATA.items()}


def flags(family, task, attention=None):
    words = [*TINY, "--arch", f"{family}_lra_{task}"]
    words += ["--task", "lra-image" if task in ("cifar10", "pf32", "pf128") else "lra-text"]
    return words if attention is None else [*words, "--attention", attention]


@pytest.mark.parametrize(("family", "task", "attention"), CELLS)
def test_trains_validates_resumes(family, task, attention, data, tmp_path):
    words = flags(family, task, attention)
    checkpoint = train(data[task], tmp_path, *words)
    assert checkpoint["optimizer_history"][-1]["num_updates"] == 2
    reported = checkpoint["extra_state"]["val_loss"]
    found = validate(tmp_path / "checkpoint_last.pt")
    assert found["accuracy"] == pytest.approx(reported, abs=1e-3)

    resumed = train(data[task], tmp_path, *words, updates=3)
    assert resumed["optimizer_history"][-1]["num_updates"] == 3
    states = [state["last_optimizer_state"]["state"] for state in (checkpoint, resumed)]
    assert {state["step"] for state in states[0].values()} == {2}
    assert {state["step"] for state in states[1].values()} == {3}
    moved = [
        name
        for name, value in resumed["model"].items()
        if not torch.equal(value, checkpoint["model"][name])
    ]
    assert len(moved) > len(resumed["model"]) / 2
    assert all(torch.isfinite(value).all() for value in resumed["model"].values())


@pytest.mark.parametrize("family", ATTENTIONS)
@pytest.mark.parametrize("task", ["aan", "cifar10"])
def test_resumed_equals_uninterrupted(family, task, data, tmp_path):
    words = flags(family, task)
    whole = train(data[task], tmp_path / "whole", *words, updates=5)
    train(data[task], tmp_path / "parts", *words, updates=2)
    parts = train(data[task], tmp_path / "parts", *words, updates=5)
    for name, value in whole["model"].items():
        torch.testing.assert_close(parts["model"][name], value, rtol=0, atol=0)


@pytest.mark.parametrize("family", ATTENTIONS)
@pytest.mark.parametrize("task", ["imdb", "pf32"])
def test_bfloat16_trains_and_validates(family, task, data, tmp_path):
    """fairseq casts the model and the pixels; the optimizer keeps float32."""
    checkpoint = train(data[task], tmp_path, *flags(family, task), "--bf16")
    assert checkpoint["optimizer_history"][-1]["num_updates"] == 2
    assert all(torch.isfinite(value).all() for value in checkpoint["model"].values())
    assert "accuracy" in validate(tmp_path / "checkpoint_last.pt")
