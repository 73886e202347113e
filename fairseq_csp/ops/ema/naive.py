"""The moving average as the paper states it, for tests and benchmarks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def ema_kernel_naive(
    delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, length: int
) -> Tensor:
    """Return the moving average's kernel, one power a channel, component and lag.

    ``sum_n p beta gamma sqrt(1/N) q^t`` for each lag t, with ``p = sigmoid(delta)`` and
    ``q = 1 - p sigmoid(alpha)``. The parameters have one floating dtype.

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

    As the published code has it: both directions' kernels in one line, the signal behind as many
    zeros as the kernel looks ahead, and FFTs of twice the length of both together. All tensors are
    float32, or all float64, and so is the result.

    Args:
        x: (batch, D, positions).
        delta: (2D, N, 1) damping, before the sigmoid.
        alpha: (2D, N, 1) decay, before the sigmoid.
        beta: (2D, N, 1) expansion.
        gamma: (2D, N) projection.
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
