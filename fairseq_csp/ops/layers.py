"""What MEGA's layers do at each position by itself, forward and backward.

On a CPU the kernels (``layers.cpp``), in float32 and bfloat16, go through it block of positions by
block: linear maps, activations, gates, dropout and residuals of a block while its numbers are in
the cache. Elsewhere, and under autocast, it is made of the operators of the other modules.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fairseq_csp.ops.dropout import draw_seed
from fairseq_csp.ops.gates import dropout_add, gated_residual, silu_dropout
from fairseq_csp.ops.kernels import contiguous_positions, native_operators
from fairseq_csp.ops.linear import linear, linear_split, silu_linear


def linear_silu(x: Tensor, weight: Tensor, bias: Tensor, p: float, training: bool) -> Tensor:
    """Return ``dropout(silu(weight x + bias))`` at each position.

    Beside the arguments ``weight x`` is kept for the backward pass.

    Args:
        x: (batch, dim, positions), any floating dtype.
        weight: (outputs, dim).
        bias: (outputs,).
        p: probability of dropping an output.
        training: whether to drop anything.

    Returns:
        (batch, outputs, positions), the dtype of ``x`` or of autocast.

    Raises:
        ValueError: ``p`` is not a probability.
    """
    if 0 <= p <= 1 and _kernels(x, weight, bias):
        return _LinearSilu.apply(x, weight, bias, *_drawn(p, training))
    return silu_dropout(linear(x, weight, bias), p, training)


def feed_forward(
    x: Tensor,
    residual: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    p: float,
    training: bool,
) -> Tensor:
    """Return ``residual + dropout(weight2 silu(weight1 x + bias1) + bias2)`` at each position.

    Beside the arguments ``weight1 x`` is kept for the backward pass.

    Args:
        x: (batch, dim, positions), any floating dtype.
        residual: (batch, outputs, positions), which may be ``x``.
        weight1: (hidden, dim).
        bias1: (hidden,).
        weight2: (outputs, hidden).
        bias2: (outputs,).
        p: probability of dropping an output.
        training: whether to drop anything.

    Returns:
        (batch, outputs, positions), the dtype of ``residual``.

    Raises:
        ValueError: ``p`` is not a probability.
    """
    if 0 <= p <= 1 and _kernels(x, residual, weight1, bias1, weight2, bias2):
        drawn = _drawn(p, training)
        beside = None if residual is x else residual
        return _FeedForward.apply(x, beside, weight1, bias1, weight2, bias2, *drawn)
    x = silu_linear(linear(x, weight1, bias1), weight2, bias2)
    return dropout_add(x, residual, p, training)


def gated_mixing(
    average: Tensor,
    mixed: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    p: float,
    training: bool,
) -> Tensor:
    """Return the output of MEGA's layer from its moving average and its mixed values.

    ``update``, ``reset`` and ``direct`` are a linear map of ``dropout(silu(average))``, and the
    output is :func:`fairseq_csp.ops.gates.gated_residual` of them, where ``silu(reset) * mixed``,
    linearly mapped, is added to ``direct`` (arXiv 2209.10655, equations 10 to 14, without queries).

    Args:
        average: (batch, dim, positions), any floating dtype.
        mixed: (batch, hidden, positions).
        residual: (batch, dim, positions).
        weight: (dim + hidden + dim, dim), of update, reset and direct.
        bias: (dim + hidden + dim,).
        out_weight: (dim, hidden).
        out_bias: (dim,).
        p: probability of dropping a number of the average, and of the candidate.
        training: whether to drop anything.

    Returns:
        (batch, dim, positions), the dtype of ``residual``.

    Raises:
        ValueError: ``p`` is not a probability.
    """
    tensors = (average, mixed, residual, weight, bias, out_weight, out_bias)
    if 0 <= p <= 1 and _kernels(*tensors):
        p, seed = _drawn(p, training)
        return _GatedMixing.apply(*tensors, p, seed, draw_seed() if p else None)
    average = silu_dropout(average, p, training)
    sizes = (average.size(1), mixed.size(1), average.size(1))
    update, reset, direct = linear_split(average, weight, bias, sizes)
    mixed = silu_linear(reset, out_weight, out_bias, mixed)
    return gated_residual(residual, update, direct, mixed, p, training)


def _kernels(*tensors: Tensor) -> Any | None:
    """Return the kernels' operators, None where they do not serve."""
    if tensors[0].dtype == torch.float64 or torch.is_autocast_enabled("cpu"):
        return None
    return native_operators(*tensors)


def _drawn(p: float, training: bool) -> tuple[float, Tensor | None]:
    p = p if training else 0.0
    return p, draw_seed() if p else None


class _LinearSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, p: float, seed: Tensor | None
    ) -> Tensor:
        out, inner = _kernels(x).linear_silu(x, weight, bias, p, seed)
        ctx.save_for_backward(x, inner, weight, bias)
        ctx.drawn = p, seed
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward = native_operators(ctx.saved_tensors[0]).linear_silu_backward
        return *backward(contiguous_positions(grad), *ctx.saved_tensors, *ctx.drawn), None, None


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        residual: Tensor | None,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        p: float,
        seed: Tensor | None,
    ) -> Tensor:
        maps = (weight1, bias1, weight2, bias2)
        beside = x if residual is None else residual
        out, inner = _kernels(x).feed_forward(x, beside, *maps, p, seed)
        ctx.save_for_backward(x, inner, *maps)
        ctx.drawn = p, seed
        ctx.residual_is_x = residual is None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward = native_operators(ctx.saved_tensors[0]).feed_forward_backward
        given = contiguous_positions(grad)
        grad_x, *others = backward(given, *ctx.saved_tensors, *ctx.drawn, ctx.residual_is_x)
        return grad_x, None if ctx.residual_is_x else grad, *others, None, None


class _GatedMixing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, *given: Any) -> Tensor:
        tensors, ctx.drawn = given[:7], given[7:]
        out, *inner = _kernels(given[0]).gated_mixing(*given)
        ctx.save_for_backward(*tensors[:3], *inner, *tensors[3:])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward = native_operators(ctx.saved_tensors[0]).gated_mixing_backward
        grads = backward(contiguous_positions(grad), *ctx.saved_tensors, *ctx.drawn)
        return *grads, None, None, None
