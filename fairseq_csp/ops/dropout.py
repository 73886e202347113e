"""Dropout that does not wait for the random number generator on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

LEVELS = 1 << 16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Set numbers to 0 with probability ``p`` and scale the others to the same expectation.

    PyTorch's own on a GPU. On a CPU that one draws a double for each number, in one thread; here
    one 64-bit draw serves four numbers, which takes a fifth of the time and rounds ``p`` to a
    multiple of 2^-16.

    Args:
        x: any shape, floating.
        p: probability in [0, 1].
        training: whether to drop anything.

    Raises:
        ValueError: ``p`` is not a probability.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability is {p}; it must be between 0 and 1")
    dropped = round(p * LEVELS)
    if not training or dropped == 0:
        return x
    if x.device.type != "cpu" or dropped == LEVELS:
        return F.dropout(x, p)
    return _Dropout.apply(x, dropped)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, dropped: int) -> Tensor:
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        levels = draws.view(torch.int16)[: x.numel()].view(x.shape)
        kept = levels >= dropped - LEVELS // 2
        ctx.save_for_backward(kept)
        ctx.scale = LEVELS / (LEVELS - dropped)
        return kept.to(x.dtype).mul_(ctx.scale).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return kept.to(grad.dtype).mul_(ctx.scale).mul_(grad), None
