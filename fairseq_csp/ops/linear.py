"""Linear maps of the channels of (batch, channels, positions)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``weight x + bias`` at each position.

    Args:
        x: (batch, inputs, positions).
        weight: (outputs, inputs).
        bias: (outputs,).

    Returns:
        (batch, outputs, positions).
    """
    return torch.baddbmm(bias[:, None], _repeat(weight, x), x)


def linear_split(
    x: Tensor, weight: Tensor, bias: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, ...]:
    """:func:`linear` in one product, its channels split into parts of the given sizes.

    The backward pass takes the parts' gradients as they come, where ``split`` would first copy them
    into one tensor.

    Args:
        x: (batch, inputs, positions).
        weight: (sum of sizes, inputs).
        bias: (sum of sizes,).
        sizes: channels of each part; 0 gives an empty part.

    Returns:
        One (batch, size, positions) for each size.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    return _LinearSplit.apply(x, weight, bias, tuple(sizes))


def _repeat(weight: Tensor, x: Tensor) -> Tensor:
    return weight.unsqueeze(0).expand(x.size(0), -1, -1)


class _LinearSplit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, sizes: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight)
        ctx.sizes = sizes
        return linear(x, weight, bias).split(sizes, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        parts = [
            (grad, rows)
            for grad, rows in zip(grads, weight.split(ctx.sizes), strict=True)
            if grad.size(1)
        ]
        grad_x = None
        for grad, rows in parts:
            product = (_repeat(rows.t(), x), grad)
            grad_x = torch.bmm(*product) if grad_x is None else grad_x.baddbmm_(*product)
        grad_weight = [torch.bmm(grad, x.transpose(1, 2)).sum(0) for grad, _ in parts]
        grad_bias = [grad.sum((0, 2)) for grad, _ in parts]
        return grad_x, torch.cat(grad_weight), torch.cat(grad_bias), None
