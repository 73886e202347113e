"""Kernels that are sums of damped rotations: S4D's and the complex moving average's."""

import math

import torch
from torch import Tensor


def damped_rotations(weight: Tensor, rate: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Return the real part of ``sum_s weight_s exp(rate_s t)`` for each lag t.

    A lag is written ``t = m a + b`` with ``m`` about the root of the lags, so that only
    ``2 sqrt(length)`` powers of a rate are taken; a matrix product gives the rest. Weights and
    powers are complex128, in which the angle of a distant lag is still exact.

    Args:
        weight: (..., K, S), complex128.
        rate: (K, S), complex128, of no positive real part.
        length: number of lags.
        dtype: of the product and the result, float32 or float64.

    Returns:
        (..., K, length).
    """
    block = max(math.isqrt(length), 1)
    blocks = -(-length // block)
    counts = torch.arange(max(block, blocks), dtype=torch.float64, device=rate.device)
    fine = torch.view_as_real(torch.exp(rate[..., None] * counts[:block])).to(dtype)
    coarse = torch.exp(rate[..., None] * (block * counts[:blocks]))
    coarse = torch.view_as_real(weight[..., None] * coarse).to(dtype)
    # the real part of a product of complex numbers as one product of real ones
    fine = torch.cat([fine[..., 0], -fine[..., 1]], dim=-2)
    coarse = torch.cat([coarse[..., 0], coarse[..., 1]], dim=-2)
    return torch.matmul(coarse.transpose(-2, -1), fine).flatten(-2)[..., :length]
