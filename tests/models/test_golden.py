"""Every number equals that of the published code, which tests/golden holds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.helpers.building import build

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("*.npz"))


def options(arrays, name):
    """The file's flags, and CSP where the file's name says so."""
    flags = json.loads(str(arrays["meta"]))
    if "csp" in name.split("_"):
        flags["attention"] = "csp"
    return flags


def numbers(arrays, kind):
    return {
        name.removeprefix(f"{kind}/"): torch.tensor(arrays[name])
        for name in arrays.files
        if name.startswith(f"{kind}/")
    }


def before_training(state):
    """Batch-norm statistics as they were before the one step that the file is taken after."""
    fresh = dict(state)
    for name, value in state.items():
        if name.endswith(("running_mean", "num_batches_tracked")):
            fresh[name] = torch.zeros_like(value)
        elif name.endswith("running_var"):
            fresh[name] = torch.ones_like(value)
    return fresh


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda path: path.stem)
def run(request):
    """A golden file, and a model of its flags and weights after the same step."""
    arrays = np.load(request.param)
    flags = options(arrays, request.param.stem)
    documents = 2 if "in/src1_tokens" in arrays.files else 1
    model = build(**flags, symbols=flags["num_symbols"] + 5, documents=documents)
    state = numbers(arrays, "param")
    model.load_state_dict(before_training(state) if flags["training"] else dict(state))
    model.train(flags["training"])
    inputs = numbers(arrays, "in")
    target = inputs.pop("target")
    logits = model(**inputs)
    loss = F.cross_entropy(logits, target, reduction="sum")
    loss.backward()
    return arrays, model, logits, loss, state


def test_golden_files_are_there():
    assert len(GOLDEN) >= 8


def test_logits_and_loss(run):
    arrays, _, logits, loss, _ = run
    torch.testing.assert_close(logits, torch.tensor(arrays["out/logits"]), rtol=0, atol=1e-5)
    assert loss.item() == pytest.approx(float(arrays["out/loss"]), abs=1e-5)


def test_gradients(run):
    arrays, model, *_ = run
    expected = numbers(arrays, "grad")
    model.upgrade_state_dict(expected)  # without the dead parts
    largest = max(gradient.abs().max() for gradient in expected.values())
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # a bias in front of batch norm has gradient 0 but for rounding, in the published code too
        scale = max(gradient.abs().max(), 4e-2 * largest)
        assert (found[name] - gradient).abs().max() <= 1e-4 * scale, name


def test_statistics_after_the_step(run):
    _, model, _, _, state = run
    for name, value in model.state_dict().items():
        if "running_" in name or "num_batches" in name:
            torch.testing.assert_close(value, state[name], rtol=0, atol=1e-5)


def test_order_of_parameters(run):
    """Published optimizer states number the parameters in the order of the state dict."""
    _, model, _, _, state = run
    model.upgrade_state_dict(state)
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name in state if name in set(names)]
    weights = {name for name in state if not name.endswith("._float_tensor")}
    assert set(model.state_dict()) == weights
