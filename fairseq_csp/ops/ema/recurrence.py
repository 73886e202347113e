"""The moving average as a recurrence, on a CPU (``recurrence.cpp``)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fairseq_csp.ops.kernels import contiguous_positions, native_operators


def takes_recurrence(x: Tensor, *parameters: Tensor) -> bool:
    """Whether :func:`recurrent_average` takes these: where the kernels are, not in float64."""
    narrow = all(tensor.dtype != torch.float64 for tensor in (x, *parameters))
    return narrow and native_operators(x) is not None


def recurrent_average(
    x: Tensor,
    delta: Tensor,
    alpha: Tensor,
    beta: Tensor,
    gamma: Tensor,
    omega: Tensor,
    truncation: int | None = None,
    lengths: Sequence[int] = (),
) -> Tensor:
    """Return both directions' moving averages and the residual, without FFTs.

    As :func:`fairseq_csp.ops.ema.moving_average_naive`, computed in float32 under autocast too.
    The time is that of ``N`` steps a position and channel, whatever the kernel's length.

    Args:
        x: (batch, D, positions), float32 or bfloat16.
        delta: (2D, N, 1) damping, before the sigmoid, any floating dtype but float64.
        alpha: (2D, N, 1) decay, before the sigmoid.
        beta: (2D, N, 1) expansion.
        gamma: (2D, N) projection.
        omega: (D,) residual weight.
        truncation: lags kept at most; all of them when None.
        lengths: of rows that lie end to end in one; none: x is a batch of rows.

    Returns:
        (batch, D, positions), the dtype of ``x``.
    """
    return _Recurrence.apply(x, delta, alpha, beta, gamma, omega, truncation, tuple(lengths))


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, *given: Any) -> Tensor:
        *parameters, ctx.truncation, ctx.lengths = given
        ctx.save_for_backward(x, *parameters)
        return native_operators(x).moving_average(x, *given)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        backward = native_operators(x).moving_average_backward
        grad = contiguous_positions(grad)
        return *backward(grad, x, *parameters, ctx.truncation, ctx.lengths), None, None
