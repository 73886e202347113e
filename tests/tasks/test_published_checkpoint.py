"""A checkpoint of the published code validates here, and training starts from it."""

import shlex
from pathlib import Path

import pytest
import torch

from fairseq_csp.errors import UserError
from tests.helpers.running import logged, train, validate

GOLDEN = Path(__file__).parent.parent / "golden" / "mega09_listops"
CHECKPOINT = GOLDEN / "checkpoint_best.pt"
MODEL = shlex.split("""
    --task lra-text --arch mega_lra_listop --encoder-layers 2 --encoder-embed-dim 24
    --encoder-hidden-dim 48 --encoder-ffn-embed-dim 48 --z-dim 16 --n-dim 8
    --attention-activation-fn softmax --batch-size 32
""")
CSP = ["--attention", "csp"]
# of each layer: gamma and beta, the bias of 2002 positions, z's rows of mx_proj
DEAD = 2 * (2 * 2 * 16 + 2 * 2002 - 1 + 16 * 24 + 16)


@pytest.fixture(scope="module")
def published():
    return torch.load(CHECKPOINT, weights_only=False)


@pytest.mark.parametrize(
    ("subset", "loss", "accuracy"), [("valid", 2.948, 27.0), ("test", 2.728, 33.0)]
)
def test_validates(subset, loss, accuracy, monkeypatch):
    # the checkpoint names its data relatively
    monkeypatch.chdir(GOLDEN)
    assert validate(CHECKPOINT, subset) == {"loss": loss, "accuracy": accuracy}


def test_restore(published, tmp_path):
    """Weights, optimizer and schedule go on where the published code stopped."""
    words = [*MODEL, "--restore-file", CHECKPOINT, "--lr", "1e-12"]
    checkpoint = train(GOLDEN / "data", tmp_path, *words, updates=131)
    assert checkpoint["optimizer_history"][-1]["num_updates"] == 131
    found = checkpoint["last_optimizer_state"]["state"]
    before = published["last_optimizer_state"]["state"]
    assert {int(state["step"]) for state in found.values()} == {131}
    assert found.keys() == before.keys()
    for number, state in before.items():
        # a moving average of squared gradients, with what one update adds to it
        kept = 0.98 * state["exp_avg_sq"]
        assert (found[number]["exp_avg_sq"] >= kept * 0.9999).all()
    for name, value in published["model"].items():
        torch.testing.assert_close(checkpoint["model"][name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "how",
    [
        ["--finetune-from-model", CHECKPOINT],
        ["--restore-file", CHECKPOINT, "--reset-optimizer", "--reset-lr-scheduler"]
        + ["--reset-dataloader", "--reset-meters"],
    ],
    ids=["finetune", "restore"],
)
@pytest.mark.parametrize("attention", [[], CSP], ids=["own", "csp"])
def test_start_from_weights(attention, how, published, tmp_path):
    words = [*MODEL, *attention, *how, "--lr", "1e-12"]
    with logged("fairseq_csp.models.loading") as lines:
        checkpoint = train(GOLDEN / "data", tmp_path, *words, updates=1)
    dropped = [line for line in lines if line.startswith(f"dropped {DEAD:,} attention weights")]
    assert len(dropped) == (1 if attention else 0)
    for name, value in checkpoint["model"].items():
        expected = published["model"][name]
        if attention and ".mx_proj." in name:
            expected = torch.cat([expected[:24], expected[24 + 16 :]])
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


def test_going_on_with_another_attention_is_refused(tmp_path):
    words = [*MODEL, *CSP, "--restore-file", CHECKPOINT]
    with pytest.raises(UserError, match="--attention is csp, but .* --finetune-from-model"):
        train(GOLDEN / "data", tmp_path, *words)
