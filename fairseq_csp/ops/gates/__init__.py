"""Activations and gates together with the dropout and the residual that stand beside them.

By the kernels each is one pass over the numbers, forward and backward: in float32 and bfloat16 on
a CPU (``gates.cpp``), in any dtype on a GPU (``triton_kernels.py``). Elsewhere they are PyTorch's
own operators.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fairseq_csp.ops.dropout import draw_seed, drop_by_seed, dropout
from fairseq_csp.ops.kernels import contiguous_positions, fused


def silu_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Return ``dropout(silu(x))``, keeping only ``x`` for the backward pass.

    Args:
        x: (batch, channels, positions), any floating dtype.
        p: probability of dropping a number.
        training: whether to drop anything.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        ValueError: ``p`` is not a probability.
    """
    if training and 0 < p <= 1 and fused(x):
        return _SiluDropout.apply(x, p, draw_seed())
    return dropout(F.silu(x), p, training)


def dropout_add(x: Tensor, residual: Tensor, p: float, training: bool) -> Tensor:
    """Return ``dropout(x) + residual``, keeping nothing for the backward pass.

    Args:
        x: (batch, channels, positions), any floating dtype.
        residual: the same shape.
        p: probability of dropping a number.
        training: whether to drop anything.

    Returns:
        The same shape, the wider of both dtypes.

    Raises:
        ValueError: ``p`` is not a probability.
    """
    if training and 0 < p <= 1 and fused(x, residual):
        return _DropoutAdd.apply(x, residual, p, draw_seed())
    return dropout(x, p, training) + residual


def gated_residual(
    residual: Tensor, update: Tensor, direct: Tensor, mixed: Tensor, p: float, training: bool
) -> Tensor:
    """Return MEGA's output: the gate ``sigmoid(update)`` between the residual and a candidate.

    ``residual + sigmoid(update) * (dropout(silu(direct + mixed)) - residual)`` (arXiv 2209.10655,
    equations 13 and 14). Only what is given is kept for the backward pass.

    Args:
        residual: (batch, channels, positions), any floating dtype.
        update: the same shape; under autocast it and those that follow may be of another dtype.
        direct: the same shape.
        mixed: the same shape.
        p: probability of dropping a number of the candidate.
        training: whether to drop anything.

    Returns:
        The shape and dtype of ``residual``.

    Raises:
        ValueError: ``p`` is not a probability.
    """
    if 0 <= p <= 1 and fused(residual, update, direct, mixed):
        p = p if training else 0.0
        return _GatedResidual.apply(residual, update, direct, mixed, p, draw_seed() if p else None)
    candidate = dropout(F.silu(direct + mixed), p, training)
    gate = torch.sigmoid(update)
    return torch.lerp(residual, candidate.to(residual.dtype), gate.to(residual.dtype))


class _SiluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, p: float, seed: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.drawn = p, seed
        return fused(x).silu_dropout(x, p, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        backward = fused(x).silu_dropout_backward
        return backward(contiguous_positions(grad), x, *ctx.drawn), None, None


class _DropoutAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, residual: Tensor, p: float, seed: Tensor) -> Tensor:
        ctx.drawn = p, seed
        return fused(x).dropout_add(x, residual, p, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        dropped = drop_by_seed(contiguous_positions(grad), *ctx.drawn)
        return dropped, grad, None, None


class _GatedResidual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        residual: Tensor,
        update: Tensor,
        direct: Tensor,
        mixed: Tensor,
        p: float,
        seed: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(residual, update, direct, mixed)
        ctx.drawn = p, seed
        return fused(residual).gated_residual(residual, update, direct, mixed, p, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward = fused(ctx.saved_tensors[0]).gated_residual_backward
        grad = contiguous_positions(grad)
        residual, update, inner = backward(grad, *ctx.saved_tensors, *ctx.drawn)
        return residual, update, inner, inner, None, None
