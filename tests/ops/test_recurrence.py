"""The moving average as a recurrence in C++ against the formula in float64."""

import math

import pytest
import torch

from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.moving_average import ComplexMovingAverage, MovingAverage
from fairseq_csp.ops.ema import moving_average_naive, recurrent_average, takes_recurrence
from tests.helpers.kernels import use_implementation
from tests.ops.test_ema import parameters

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def native(monkeypatch):
    use_implementation("native", monkeypatch)


def results(function, x, values, *others):
    """Output and gradients of all inputs, for a gradient that depends on the output."""
    inputs = [value.detach().requires_grad_() for value in (x, *values)]
    out = function(*inputs, *others)
    grad = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).sin().view(out.shape)
    return [out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


def exact(x, values, truncation):
    wide = [value.double() for value in values]
    return results(moving_average_naive, x.double(), wide, truncation)


def off(found, expected):
    """The largest difference, in parts of the largest number, or of 1/2 where all are less."""
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=0.5)).item()


@pytest.mark.parametrize("truncation", [None, 1, 5, 64])
@pytest.mark.parametrize("positions", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize(("dim", "components"), [(3, 4), (16, 16), (21, 9)])
def test_equals_the_formula(dim, components, positions, truncation):
    values = parameters(dim, components, dtype=torch.float32)
    x = torch.randn(2, dim, positions, generator=torch.Generator().manual_seed(1))
    found = results(recurrent_average, x, values, truncation)
    for ours, formula in zip(found, exact(x, values, truncation), strict=True):
        assert off(ours, formula) < 1e-5


def test_bfloat16_is_computed_in_float32():
    values = parameters(5, 16, dtype=torch.bfloat16)
    x = torch.randn(2, 5, 100, dtype=torch.bfloat16)
    found = results(recurrent_average, x, values, 20)
    assert {tensor.dtype for tensor in found} == {torch.bfloat16}
    expected = results(recurrent_average, x.float(), [v.float() for v in values], 20)
    assert torch.equal(found[0], expected[0].bfloat16())
    for ours, wide in zip(found[1:], expected[1:], strict=True):
        # the gradient that came in was rounded
        assert off(ours, wide) < 0.02


def test_long_rows_are_exact():
    values = parameters(4, 16, dtype=torch.float32)
    x = torch.randn(1, 4, 16384)
    for truncation in (None, 1024):
        found = results(recurrent_average, x, values, truncation)
        expected = exact(x, values, truncation)
        assert off(found[0], expected[0]) < 1e-6
        for ours, formula in zip(found[1:], expected[1:], strict=True):
            # that of delta is a difference of two that are nearly equal, by the FFT too
            assert off(ours, formula) < 1e-4


@pytest.mark.parametrize(("delta", "alpha"), [(-9.0, -9.0), (0.0, 0.0), (9.0, 9.0), (40.0, 40.0)])
@pytest.mark.parametrize("truncation", [16384, 1024])
def test_exact_for_q_near_0_and_near_1(delta, alpha, truncation):
    """q is about 1 - 1.5e-8, which float32 does not know, 0.75, 2.5e-4, and (rounded) 0."""
    values = [torch.full((4, 3, 1), delta), torch.full((4, 3, 1), alpha)]
    values += [torch.ones(4, 3, 1), torch.ones(4, 3), torch.zeros(2)]
    x = torch.zeros(1, 2, 16384)
    x[0, 0, 0], x[0, 1, -1] = 1, 1
    found = results(recurrent_average, x, values, truncation)
    wide = [value.double() for value in values]
    log_q = torch.log1p(-torch.sigmoid(wide[0][0, 0]) * torch.sigmoid(wide[1][0, 0]))
    lags = torch.arange(16384, dtype=torch.float64)
    powers = torch.where(lags == 0, 1.0, torch.exp(lags * log_q)) * math.sqrt(3)
    kernel = torch.sigmoid(wide[0][0, 0]) * powers * (lags < truncation)
    kernel[0] *= 2
    expected = torch.stack([kernel, kernel.flip(0)])
    torch.testing.assert_close(found[0][0].double(), expected, rtol=1e-5, atol=1e-6)
    assert all(tensor.isfinite().all() for tensor in found)


def test_rows_that_lie_end_to_end():
    lengths = [40, 1, 7, 64, 65]
    values = parameters(18, 5, dtype=torch.float32)
    rows = [torch.randn(1, 18, n, generator=torch.Generator().manual_seed(n)) for n in lengths]
    packed = torch.cat(rows, dim=2).requires_grad_()
    out = recurrent_average(packed, *values, 9, lengths)
    expected = [row.requires_grad_() for row in rows]
    apart = [recurrent_average(row, *values, 9) for row in expected]
    assert torch.equal(out, torch.cat(apart, dim=2))
    incoming = torch.randn_like(out)
    out.backward(incoming)
    torch.autograd.backward(apart, incoming.split(lengths, dim=2))
    assert torch.equal(packed.grad, torch.cat([row.grad for row in expected], dim=2))
    with pytest.raises(RuntimeError, match="lengths must be those of the packed rows"):
        recurrent_average(packed, *values, 9, [100])


def test_threads_change_no_average():
    values = parameters(40, 5, dtype=torch.float32)
    x = torch.randn(3, 40, 70)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(results(recurrent_average, x, values, 9))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("shape", [(0, 2, 9), (2, 2, 0)])
def test_nothing(shape):
    values = [value.requires_grad_() for value in parameters(2, 3, dtype=torch.float32)]
    x = torch.zeros(shape, requires_grad=True)
    out = recurrent_average(x, *values)
    assert out.shape == shape
    out.sum().backward()
    assert x.grad.shape == shape
    assert all((value.grad == 0).all() for value in values)


@pytest.mark.parametrize("kind", [MovingAverage, ComplexMovingAverage])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_module_takes_it_where_it_serves(kind, dtype, monkeypatch):
    calls = []

    def counted(*inputs):
        calls.append(inputs)
        return recurrent_average(*inputs)

    monkeypatch.setattr("fairseq_csp.modules.moving_average.recurrent_average", counted)
    torch.manual_seed(0)
    average = kind(5, 4, 6).to(dtype)
    x = torch.randn(2, 5, 30).to(dtype)
    lengths = SequenceLengths((30, 17), 30, CPU)
    found = average(x, lengths)
    assert bool(calls) is (kind is MovingAverage and dtype != torch.float64)
    monkeypatch.setenv("FAIRSEQ_CSP_KERNELS", "reference")
    assert not takes_recurrence(x)
    expected = average(x, lengths)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    assert off(found[0], expected[0]) < tolerance
    assert off(found[1, :, :17], expected[1, :, :17]) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_under_autocast(dtype):
    values = parameters(2, 3, dtype=torch.float32)
    x = torch.randn(2, 2, 100)
    with torch.autocast("cpu", dtype=dtype):
        inside = results(recurrent_average, x, values)
    for found, expected in zip(inside, results(recurrent_average, x, values), strict=True):
        assert torch.equal(found, expected)
