"""The moving average as a module: padding, truncation, and the kernel kept for evaluation."""

import pytest
import torch

from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.moving_average import MovingAverage, shared_kernels
from fairseq_csp.ops.ema import moving_average_naive

CPU = torch.device("cpu")


def naive(average, x):
    weights = (average.delta, average.alpha, average.beta, average.gamma, average.omega)
    return torch.nn.functional.silu(moving_average_naive(x, *weights, average.truncation))


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


def test_kept_kernel_is_that_of_the_weights():
    torch.manual_seed(0)
    average = MovingAverage(3, 4).eval()
    x, lengths = torch.randn(2, 3, 7), SequenceLengths.of(None, 2, 7, CPU)
    short, few = x[:, :, :4], SequenceLengths.of(None, 2, 4, CPU)
    with torch.no_grad():
        # shorter, longer and shorter again, all from what was kept
        for y, some in ((short, few), (x, lengths), (short, few)):
            torch.testing.assert_close(average(y, some), naive(average, y), rtol=1e-4, atol=1e-5)
        # a step of training, new weights, another dtype: each forgets it
        average.train()
        average.alpha += 1
        average.eval()
        torch.testing.assert_close(average(x, lengths), naive(average, x), rtol=1e-4, atol=1e-5)
        other = MovingAverage(3, 4)
        average.load_state_dict(other.state_dict())
        torch.testing.assert_close(average(x, lengths), naive(other, x), rtol=1e-4, atol=1e-5)
        average.double()
        torch.testing.assert_close(average(x.double(), lengths), naive(average, x.double()))


def test_shared_kernel_is_computed_once_and_takes_all_gradients(monkeypatch):
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
