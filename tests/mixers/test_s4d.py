"""S4D against its recurrence."""

import re

import pytest
import torch

from fairseq_csp import build_attention
from fairseq_csp.errors import UserError
from tests.helpers.commands import call, logged, train, training_command


def make(channels, **options):
    torch.manual_seed(0)
    return build_attention("s4d", value_dim=channels, **options).double()


@pytest.mark.parametrize("two_way", [False, True])
def test_recurrence(two_way):
    """What the docstring says, position by position, on a padded batch."""
    mixer = make(3, state=6, two_way=two_way)
    counts = (11, 1, 4)
    values = torch.randn(3, 11, 3, dtype=torch.float64)
    for row, n in enumerate(counts):
        values[row, n:] = torch.nan
    out = mixer(values, torch.tensor(counts))
    states = torch.complex(-mixer.log_A_real.exp(), mixer.A_imag)
    decay = torch.exp(mixer.log_dt.exp()[:, None] * states)
    weights = torch.view_as_complex(mixer.C) * (decay - 1) / states
    for row, n in enumerate(counts):
        expected = mixer.D * values[row, :n]
        state = torch.zeros_like(states)
        for i in range(n):
            state = decay * state + values[row, i, :, None]
            expected[i] += 2 * (weights[0] * state).sum(1).real
        if two_way:
            state = torch.zeros_like(states)
            for i in reversed(range(n)):
                expected[i] += 2 * (weights[1] * state).sum(1).real
                state = decay * state + values[row, i, :, None]
        torch.testing.assert_close(out[row, :n], expected, rtol=0, atol=1e-12)
        assert out[row, n:].eq(0).all()


def test_one_way_looks_back_only():
    mixer = make(2, state=4, two_way=False)
    values = torch.randn(1, 9, 2, dtype=torch.float64)
    later = values.clone()
    later[:, 5:] += 1
    changed = (mixer(later) - mixer(values)).abs().amax((0, 2))
    assert changed[:5].max() < 1e-12
    assert changed[5:].min() > 1e-6


def test_kernel_decays_and_serves_shorter_rows():
    mixer = make(4, state=8)
    with torch.no_grad():
        mixer.log_dt.fill_(-2.3)
    kernel = mixer.kernel(400)
    assert kernel[..., 300:].abs().max() < 1e-4 * kernel[..., :50].abs().max()
    for lags in (1, 2, 7, 100, 399):
        torch.testing.assert_close(mixer.kernel(lags), kernel[..., :lags], rtol=0, atol=1e-12)


def test_kernel_in_float32():
    """Angles of distant lags are large; float32 must not lose them."""
    mixer = make(8, state=64)
    exact = mixer.kernel(4000)
    rounded = mixer.float().kernel(4000)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 1e-5 * exact.abs().max()


def test_parameters():
    for two_way, each in ((True, 3 * 10 + 2), (False, 2 * 10 + 2)):
        mixer = make(7, state=10, two_way=two_way)
        assert sum(p.numel() for p in mixer.parameters()) == 7 * each
    torch.testing.assert_close(mixer.A_imag[3].detach().float(), torch.arange(5.0) * torch.pi)
    assert (mixer.log_A_real.exp() - 0.5).abs().max() < 1e-6
    assert mixer.log_dt.exp().min() > 1e-3 and mixer.log_dt.exp().max() < 1e-1


@pytest.mark.parametrize("two_way", [False, True])
def test_gradcheck(two_way):
    mixer = make(2, state=4, two_way=two_way)
    values = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([5, 3])

    def call(values, *parameters):
        named = dict(zip(dict(mixer.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(mixer, named, (values, lengths))

    assert torch.autograd.gradcheck(call, (values, *mixer.parameters()))


@pytest.mark.parametrize("state", [0, 3, -2])
def test_bad_state(state):
    with pytest.raises(UserError, match=f"--s4d-state is {state}; it must be even"):
        make(2, state=state)


def test_its_own_learning_rate(tiny_listops, tmp_path):
    """Steps and poles follow the schedule to their own peak, without decay, and resume."""
    flags = ["--attention", "s4d", "--s4d-state", "4", "--weight-decay", "0.5", "--s4d-lr"]
    where = [tiny_listops, tmp_path / "still", *flags, "0"]
    train(*where, "--max-update", "2")
    state = torch.load(tmp_path / "still" / "checkpoint_last.pt", weights_only=False)
    groups = state["last_optimizer_state"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert groups[1]["lr"] == 0 < groups[0]["lr"]
    assert len(groups[1]["params"]) == 3 * 2
    layer = "encoder.encoder.layers.0.mega_layer.attention."
    assert (state["model"][f"{layer}A_imag"][0] / torch.pi).equal(torch.arange(2.0))
    assert not state["model"][f"{layer}D"].isnan().any()
    log = train(*where, "--max-update", "4")
    assert [step["num_updates"] for step in logged(log, "train_inner")] == ["3", "4"]
    train(tiny_listops, tmp_path / "slow", *flags, "0.001", "--max-update", "2")
    slow = torch.load(tmp_path / "slow" / "checkpoint_last.pt", weights_only=False)
    rates = [group["lr"] for group in slow["last_optimizer_state"]["param_groups"]]
    # the command's peak is 0.004
    assert rates[1] == pytest.approx(rates[0] / 4)
    assert not (slow["model"][f"{layer}A_imag"][0] / torch.pi).equal(torch.arange(2.0))
    answer = call(
        *training_command(tiny_listops, tmp_path / "still", *flags[:-1], "--max-update", "6")
    )
    assert answer.returncode == 1
    assert re.search("--s4d-lr is .*was trained with 0.0: give that", answer.stderr)
    assert "Traceback" not in answer.stderr


def test_negative_learning_rate():
    with pytest.raises(UserError, match="--s4d-lr is -0.1; it must be at least 0"):
        make(2, lr=-0.1)
