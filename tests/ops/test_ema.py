"""The moving average against sums written out, and against float64 where float32 is hard."""

import math

import pytest
import torch

from fairseq_csp.ops.ema import (
    circular_kernel,
    convolve,
    ema_kernel,
    ema_kernel_naive,
    fast_size,
    moving_average_naive,
)


def parameters(dim, components, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    shape = (2 * dim, components)
    delta, alpha, beta = (normal(*shape, 1) for _ in range(3))
    return delta, alpha, beta, normal(*shape), normal(dim)


def fast(x, delta, alpha, beta, gamma, omega, truncation=None):
    lags = min(x.size(2), truncation or x.size(2))
    kernel = ema_kernel(delta, alpha, beta, gamma, lags)
    return convolve(x, circular_kernel(kernel, omega, x.size(2)))


def by_sums(x, delta, alpha, beta, gamma, omega, truncation=None):
    """``sum_{j<=i} back[i-j] x_j + sum_{j>=i} ahead[j-i] x_j + omega x_i``, as written."""
    batch, dim, positions = x.shape
    p = torch.sigmoid(delta)[..., 0]
    q = 1 - p * torch.sigmoid(alpha)[..., 0]
    weight = p * beta[..., 0] * gamma / math.sqrt(gamma.size(1))
    y = omega[:, None] * x
    for i in range(positions):
        for j in range(positions):
            lag = abs(i - j)
            if truncation is not None and lag >= truncation:
                continue
            kernel = (weight * q**lag).sum(1)
            if j <= i:
                y[:, :, i] += kernel[:dim] * x[:, :, j]
            if j >= i:
                y[:, :, i] += kernel[dim:] * x[:, :, j]
    return y


@pytest.mark.parametrize("positions", [1, 2, 7, 20])
@pytest.mark.parametrize("truncation", [None, 1, 5, 100])
def test_equals_the_sums(positions, truncation):
    values = parameters(3, 4)
    x = torch.randn(2, 3, positions, dtype=torch.float64)
    expected = by_sums(x, *values, truncation)
    assert torch.allclose(fast(x, *values, truncation), expected, atol=1e-12)
    assert torch.allclose(moving_average_naive(x, *values, truncation), expected, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 63, 500, 1024])
def test_kernel_equals_naive_in_value_and_gradient(length):
    kernels, gradients = [], []
    for kernel in (ema_kernel, ema_kernel_naive):
        values = [value.requires_grad_() for value in parameters(2, 3)[:4]]
        kernels.append(kernel(*values, length))
        incoming = torch.linspace(-1, 1, 4 * length, dtype=torch.float64).view(4, length)
        gradients.append(torch.autograd.grad(kernels[-1], values, incoming))
    assert torch.allclose(*kernels, atol=1e-12)
    for ours, naive in zip(*gradients, strict=True):
        assert torch.allclose(ours, naive, atol=1e-10)


@pytest.mark.parametrize(("delta", "alpha"), [(-9.0, -9.0), (0.0, 0.0), (9.0, 9.0), (40.0, 40.0)])
def test_long_kernel_is_exact_for_q_near_0_and_near_1(delta, alpha):
    """q is about 1 - 1.5e-8, 0.75, 2.5e-4, and (rounded) 0."""
    values = [torch.full((2, 3, 1), delta), torch.full((2, 3, 1), alpha)]
    values += [torch.ones(2, 3, 1), torch.ones(2, 3)]
    wide = [value.double() for value in values]
    log_q = torch.log1p(-torch.sigmoid(wide[0]) * torch.sigmoid(wide[1]))
    lags = torch.arange(16384, dtype=torch.float64)
    powers = torch.where(lags == 0, 1.0, torch.exp(lags * log_q))
    exact = (torch.sigmoid(wide[0]) * powers).sum(1) / math.sqrt(3)
    assert torch.allclose(ema_kernel(*values, 16384).double(), exact, rtol=1e-5, atol=1e-6)

    trained = [value.requires_grad_() for value in values]
    ema_kernel(*trained, 16384).sum().backward()
    assert all(value.grad.isfinite().all() for value in trained)


def test_long_average_is_exact_in_float32():
    values = parameters(4, 16, dtype=torch.float32)
    x = torch.randn(1, 4, 16384)
    wide = moving_average_naive(x.double(), *(value.double() for value in values))
    ours = fast(x, *values)
    assert (ours - wide).abs().max() / wide.abs().max() < 1e-5


def test_gradients_of_the_convolution():
    values = [value.requires_grad_() for value in parameters(2, 3)]
    x = torch.randn(2, 2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *v: fast(x, *v, truncation=5), (x, *values))


def test_empty_batch():
    values = [value.requires_grad_() for value in parameters(2, 3)]
    x = torch.zeros(0, 2, 9, dtype=torch.float64, requires_grad=True)
    out = fast(x, *values)
    assert out.shape == x.shape
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert all((value.grad == 0).all() for value in values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_under_autocast(dtype):
    """Value and gradients: autocast would make the kernel half precision, which the FFT refuses."""
    values = [value.requires_grad_() for value in parameters(2, 3, dtype=torch.float32)]
    x = torch.randn(2, 2, 100, requires_grad=True)
    outputs = []
    for enabled in (True, False):
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            out = fast(x, *values)
        outputs.append([out, *torch.autograd.grad(out.square().sum(), [x, *values])])
        assert out.dtype == torch.float32
    for found, expected in zip(*outputs, strict=True):
        assert torch.equal(found, expected)


def test_sizes_of_the_fft():
    """5-smooth numbers: the next above 7, 17, 31, 97 and 7,999."""
    sizes = [circular_kernel(torch.zeros(2, 1), torch.zeros(1), n).size(1) for n in (7, 17, 31, 97)]
    assert sizes == [8, 18, 32, 100]
    assert circular_kernel(torch.zeros(2, 4000), torch.zeros(1), 4000).size(1) == 8000
    assert circular_kernel(torch.zeros(2, 1), torch.zeros(1), 1).size(1) == 1


def test_few_sizes_of_the_fft_on_a_gpu(monkeypatch):
    """A GPU's library makes a plan for each; tensors without numbers stand for those of one."""
    sizes = set()
    for positions in range(1, 4001):
        lags = min(positions, 1024)
        kernel, skip = torch.zeros(2, lags, device="meta"), torch.zeros(1, device="meta")
        size = circular_kernel(kernel, skip, positions).size(1)
        assert size >= positions + lags - 1
        sizes.add(size)
    assert sizes == {512 * factor for factor in (1, 2, 3, 4, 5, 6, 8, 9, 10)}

    values = parameters(2, 3)
    x = torch.randn(2, 2, 600, dtype=torch.float64)
    exact = fast(x, *values)
    monkeypatch.setattr(
        "fairseq_csp.ops.ema.convolution.fast_size",
        lambda least, _: fast_size(least, torch.device("cuda")),
    )
    torch.testing.assert_close(fast(x, *values), exact, rtol=0, atol=1e-12)


def test_compiles_without_a_break():
    torch._dynamo.reset()
    values = parameters(2, 3, dtype=torch.float32)
    x = torch.randn(2, 2, 100)
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, *values), fast(x, *values))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    values = parameters(2, 3, dtype=torch.float32)
    x = torch.randn(2, 2, 100).to(dtype)
    out = fast(x, *values)
    assert out.dtype == dtype
    assert torch.equal(out, fast(x.float(), *values).to(dtype))
