"""Multi-dimensional damped exponential moving average, in both directions.

Source: "Mega: Moving Average Equipped Gated Attention", arXiv 2209.10655, section 3.1.
"""

import math

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def ema_kernel_naive(
    delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, length: int
) -> Tensor:
    """Return the moving average's kernel, one power a channel, component and lag.

    The formula as it stands in the paper, for tests and benchmarks; see :func:`ema_kernel`.
    The parameters have one floating dtype.

    Args:
        delta: (K, N, 1) damping, before the sigmoid.
        alpha: (K, N, 1) decay, before the sigmoid.
        beta: (K, N, 1) expansion.
        gamma: (K, N) projection.
        length: number of lags.

    Returns:
        (K, length), the dtype of the parameters.
    """
    p = torch.sigmoid(delta)
    q = 1 - p * torch.sigmoid(alpha)
    lags = torch.arange(length, dtype=q.dtype, device=q.device)
    powers = torch.exp(lags * torch.log(q))
    return torch.einsum("kn,knt->kt", gamma * math.sqrt(1 / gamma.size(1)), p * beta * powers)


def ema_kernel(delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, length: int) -> Tensor:
    """Return the moving average's kernel ``sum_n p beta gamma sqrt(1/N) q^t`` for each lag t.

    ``p = sigmoid(delta)``, ``q = 1 - p sigmoid(alpha)``. A lag is written ``t = a*m + b`` with
    ``m`` about ``sqrt(length)``, so that only ``2*sqrt(length)`` powers are taken per channel and
    component, and one batched matrix product gives the rest. The parameters are of any floating
    dtype; half precision is computed in float32.

    Args:
        delta: (K, N, 1) damping, before the sigmoid.
        alpha: (K, N, 1) decay, before the sigmoid.
        beta: (K, N, 1) expansion.
        gamma: (K, N) projection.
        length: number of lags.

    Returns:
        (K, length), float32 or wider.
    """
    delta, alpha, beta, gamma = (_at_least_float32(x) for x in (delta, alpha, beta, gamma))
    p = torch.sigmoid(delta)
    # log1p keeps q's distance from 1 where it is below the dtype's resolution; the bound keeps
    # log(0) and its gradient away where both sigmoids are rounded to 1
    log_q = torch.log1p(-(p * torch.sigmoid(alpha)).clamp(max=1 - torch.finfo(p.dtype).eps))
    weight = p * beta * gamma.unsqueeze(2) * math.sqrt(1 / gamma.size(1))
    block = max(math.isqrt(length), 1)
    blocks = -(-length // block)
    lags = torch.arange(max(block, blocks), dtype=log_q.dtype, device=log_q.device)
    fine = torch.exp(lags[:block] * log_q)
    coarse = weight * torch.exp(lags[:blocks] * block * log_q)
    return torch.bmm(coarse.transpose(1, 2), fine).flatten(1)[:, :length]


def circular_kernel(kernel: Tensor, skip: Tensor, positions: int) -> Tensor:
    """Lay both directions of a kernel and the residual weight on one circle.

    Args:
        kernel: (2D, lags), any floating dtype: rows [0, D) look back, rows [D, 2D) look ahead; both
            hold lag 0. No more lags than positions.
        skip: (D,), any floating dtype: weight of the position itself, beyond the moving average.
        positions: positions of the sequences it will be applied to.

    Returns:
        (D, size), the dtype of the kernel, with the smallest fast FFT size on which the directions
        do not meet.
    """
    back, ahead = kernel.chunk(2)
    size = next_fast_len(positions + kernel.size(1) - 1, real=True)
    here = back[:, :1] + ahead[:, :1] + skip.to(kernel.dtype).unsqueeze(1)
    between = back.new_zeros(back.size(0), size - 2 * kernel.size(1) + 1)
    return torch.cat([here, back[:, 1:], between, ahead[:, 1:].flip(1)], dim=1)


def convolve(x: Tensor, circle: Tensor) -> Tensor:
    """Convolve every channel with its circular kernel by one FFT.

    Args:
        x: (batch, D, positions), any floating dtype; computed in float32 or wider.
        circle: (D, size), float32 or wider, from :func:`circular_kernel`.

    Returns:
        (batch, D, positions), the dtype of ``x``.
    """
    return _Convolve.apply(x, circle)


def moving_average_naive(
    x: Tensor,
    delta: Tensor,
    alpha: Tensor,
    beta: Tensor,
    gamma: Tensor,
    omega: Tensor,
    truncation: int | None = None,
) -> Tensor:
    """Return the two moving averages and the residual by one linear convolution.

    As the published code has it: both directions' kernels side by side, the signal behind as many
    zeros as the kernel looks ahead, and FFTs of twice the length of both together. All tensors are
    float32, or all float64, and so is the result.

    Args:
        x: (batch, D, positions).
        delta: (2D, N, 1), as the three that follow see :func:`ema_kernel`.
        alpha: (2D, N, 1).
        beta: (2D, N, 1).
        gamma: (2D, N).
        omega: (D,) residual weight.
        truncation: lags kept at most; all of them when None.

    Returns:
        (batch, D, positions): ``sum_{j<=i} back[i-j] x_j + sum_{j>=i} ahead[j-i] x_j + omega x_i``.
    """
    positions = x.size(2)
    kernel = ema_kernel_naive(delta, alpha, beta, gamma, min(positions, truncation or positions))
    back, ahead = kernel.chunk(2)
    reach = kernel.size(1) - 1
    both = F.pad(back, (reach, 0)) + F.pad(ahead.flip(1), (0, reach))
    size = 2 * (positions + reach)
    spectrum = torch.fft.rfft(F.pad(x, (reach, 0)), n=size) * torch.fft.rfft(both, n=size)
    average = torch.fft.irfft(spectrum, n=size)[..., 2 * reach : 2 * reach + positions]
    return average + omega.unsqueeze(1) * x


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, circle: Tensor) -> Tensor:
        size = circle.size(1)
        kernel = torch.fft.rfft(circle)
        signal = _spectrum(x, size)
        averaged = torch.fft.irfft(signal * kernel, n=size)[..., : x.size(2)].to(x.dtype)
        # as the backward pass takes them; without conj_physical each use would make a copy
        ctx.save_for_backward(signal.conj_physical_(), kernel.conj_physical_())
        ctx.size = size
        return averaged

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        signal, kernel = ctx.saved_tensors
        positions = grad.size(2)
        spectrum = _spectrum(grad, ctx.size)
        grad_x = grad_circle = None
        if ctx.needs_input_grad[1]:
            product = spectrum[0] * signal[0]
            for row in range(1, spectrum.size(0)):
                product.addcmul_(spectrum[row], signal[row])
            grad_circle = torch.fft.irfft(product, n=ctx.size)
        if ctx.needs_input_grad[0]:
            product = spectrum.mul_(kernel)
            grad_x = torch.fft.irfft(product, n=ctx.size)[..., :positions].to(grad.dtype)
        return grad_x, grad_circle


def _spectrum(x: Tensor, size: int) -> Tensor:
    # the padding and the cast in one pass
    wide = torch.promote_types(x.dtype, torch.float32)
    padded = x.new_empty(x.size(0), x.size(1), size, dtype=wide)
    padded[..., : x.size(2)] = x
    padded[..., x.size(2) :] = 0
    return torch.fft.rfft(padded)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
