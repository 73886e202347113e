"""The moving average as a module: padding, truncation, and the kernel kept for evaluation."""

import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.moving_average import MovingAverage, shared_kernels
from fairseq_csp.ops.ema import moving_average_naive
from tests.helpers.kernels import use_implementation

CPU = torch.device("cpu")


def naive(average, x):
    weights = (average.delta, average.alpha, average.beta, average.gamma, average.omega)
    return moving_average_naive(x, *weights, average.truncation)


@pytest.mark.parametrize("truncation", [None, 1, 4, 100])
@pytest.mark.parametrize("positions", [1, 2, 7])
def test_formula(positions, truncation):
    torch.manual_seed(0)
    average = MovingAverage(3, 4, truncation)
    x = torch.randn(2, 3, positions)
    lengths = SequenceLengths.of(None, 2, positions, CPU)
    torch.testing.assert_close(average(x, lengths), naive(average, x), rtol=1e-4, atol=1e-5)


def test_padding_counts_as_zero():
    average = MovingAverage(3, 4)
    x = torch.randn(2, 3, 7)
    x[0, :, 5:] = torch.nan
    found = average(x, SequenceLengths((5, 7), 7, CPU))
    torch.testing.assert_close(
        found[0, :, :5], average(x[:1, :, :5], SequenceLengths((5,), 5, CPU))[0]
    )
    assert found.isfinite().all()


CHANGES = {
    "in place": lambda average, other: average.load_state_dict(other.state_dict()),
    "by data": lambda average, other: [
        mine.data.copy_(theirs.data)
        for mine, theirs in zip(average.parameters(), other.parameters(), strict=True)
    ],
    "by a vector": lambda average, other: vector_to_parameters(
        parameters_to_vector(other.parameters()), average.parameters()
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_kernel_is_that_of_the_weights(change):
    torch.manual_seed(0)
    average, other = MovingAverage(3, 4).eval(), MovingAverage(3, 4).eval()
    x, lengths = torch.randn(2, 3, 7), SequenceLengths.of(None, 2, 7, CPU)
    with torch.no_grad():
        before, expected = average(x, lengths), other(x, lengths)
        called = torch.func.functional_call(average, dict(other.named_parameters()), (x, lengths))
        assert called.equal(expected)
        assert average(x, lengths).equal(before)
        CHANGES[change](average, other)
        assert average(x, lengths).equal(expected)
        assert not expected.equal(before)


def test_shared_kernel_is_computed_once_and_takes_all_gradients(monkeypatch):
    # that of the FFT; the recurrence in C++ has no kernel
    use_implementation("reference", monkeypatch)
    torch.manual_seed(0)
    average, calls = MovingAverage(3, 4), []
    compute = average._compute
    monkeypatch.setattr(average, "_compute", lambda lags: calls.append(lags) or compute(lags))
    parts = [torch.randn(2, 3, 7), torch.randn(1, 3, 5)]

    def gradients():
        loss = sum(
            average(x, SequenceLengths.of(None, len(x), x.size(2), CPU)).sum() for x in parts
        )
        return torch.autograd.grad(loss, list(average.parameters()))

    apart = gradients()
    with shared_kernels(average):
        together = gradients()
    assert calls == [7, 5, 7]
    torch.testing.assert_close(together, apart)
    # the next step's weights are others
    with torch.no_grad():
        average.alpha += 1
    x, lengths = parts[0], SequenceLengths.of(None, 2, 7, CPU)
    torch.testing.assert_close(average(x, lengths), naive(average, x), rtol=1e-4, atol=1e-5)


def test_initialisation():
    torch.manual_seed(0)
    average = MovingAverage(500, 16)
    assert average.delta.std().item() == pytest.approx(0.2, rel=0.05)
    assert average.alpha.std().item() == pytest.approx(0.2, rel=0.05)
    assert average.gamma.std().item() == pytest.approx(1, rel=0.05)
    assert average.omega.std().item() == pytest.approx(1, rel=0.1)
    signs = torch.tensor([1.0, -1.0] * 8)
    torch.testing.assert_close(average.beta[..., 0].mean(0), signs, rtol=0, atol=0.01)
    assert (average.beta[..., 0] - signs).std().item() == pytest.approx(0.02, rel=0.05)
