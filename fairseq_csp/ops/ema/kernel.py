"""The moving average's kernel."""

import math

import torch
from torch import Tensor

from fairseq_csp.ops.autocast import outside_autocast

# lags of a block: about the root of the lengths in use
BLOCK = 64


@outside_autocast
def ema_kernel(delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, length: int) -> Tensor:
    """Return the moving average's kernel ``sum_n p beta gamma sqrt(1/N) q^t`` for each lag t.

    ``p = sigmoid(delta)``, ``q = 1 - p sigmoid(alpha)``. A lag is written ``t = 64 a + b``, so that
    only ``64 + length / 64`` powers are taken per channel and component, and one batched matrix
    product gives the rest. The parameters are of any floating dtype; half precision is computed in
    float32, and so is all of it under autocast.

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
    blocks = (length + BLOCK - 1) // BLOCK
    lags = torch.arange(max(BLOCK, blocks), dtype=log_q.dtype, device=log_q.device)
    fine = torch.exp(lags[:BLOCK] * log_q)
    coarse = weight * torch.exp(lags[:blocks] * BLOCK * log_q)
    return torch.bmm(coarse.transpose(1, 2), fine).flatten(1)[:, :length]


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
