"""Linear maps of the channels of (batch, channels, positions).

All tensors of a call have one floating dtype, which is the result's too. Under autocast they may
differ, and autocast's is the result's.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fairseq_csp.ops.kernels import fused, native_operators


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``weight x + bias`` at each position.

    Args:
        x: (batch, inputs, positions).
        weight: (outputs, inputs).
        bias: (outputs,).

    Returns:
        (batch, outputs, positions).
    """
    (out,) = linear_split(x, weight, bias, (weight.size(0),))
    return out


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
    return _LinearSplit.apply(*_autocast(x, weight, bias), tuple(sizes))


def silu_linear(x: Tensor, weight: Tensor, bias: Tensor, factor: Tensor | None = None) -> Tensor:
    """Return ``linear(silu(x) * factor, weight, bias)``, keeping only what is given.

    The backward pass computes what stands in the brackets again.

    Args:
        x: (batch, inputs, positions).
        weight: (outputs, inputs).
        bias: (outputs,).
        factor: (batch, inputs, positions), or None for 1.

    Returns:
        (batch, outputs, positions).
    """
    if factor is None:
        return _SiluLinear.apply(*_autocast(x, weight, bias), None)
    return _SiluLinear.apply(*_autocast(x, weight, bias, factor))


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        return tuple(tensor.to(dtype) for tensor in tensors)
    return tensors


def _map_gradients(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of a linear map's weight and bias.

    Args:
        grad: (batch, outputs, positions).
        x: (batch, inputs, positions), what the map was applied to.
        weight: (outputs, inputs).
    """
    if grad.dtype != torch.float64 and (kernels := native_operators(grad, x, weight)):
        return kernels.linear_gradients(grad, x, weight)
    # one dimension at a time: over both at once torch first copies a bfloat16 tensor to float32
    return torch.bmm(grad, x.transpose(1, 2)).sum(0), grad.sum(2).sum(0)


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _repeat(weight: Tensor, x: Tensor) -> Tensor:
    return weight.unsqueeze(0).expand(x.size(0), -1, -1)


class _LinearSplit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, sizes: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight)
        ctx.sizes = sizes
        return torch.baddbmm(bias[:, None], _repeat(weight, x), x).split(sizes, dim=1)

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
        gradients = [_map_gradients(grad, x, rows) for grad, rows in parts]
        grad_weight, grad_bias = (_join(parts) for parts in zip(*gradients, strict=True))
        return grad_x, grad_weight, grad_bias, None


class _SiluLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, factor: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight, *(() if factor is None else (factor,)))
        if factor is None:
            hidden = F.silu(x)
        elif kernels := fused(x, factor):
            hidden = kernels.silu_product(x, factor)
        else:
            hidden = F.silu(x).mul_(factor)
        return torch.baddbmm(bias[:, None], _repeat(weight, x), hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *factor = ctx.saved_tensors
        kernels = fused(x, *factor) if factor else None
        activated = None
        if kernels:
            hidden = kernels.silu_product(x, *factor)
        else:
            activated = F.silu(x)
            hidden = activated * factor[0] if factor else activated
        grad_weight, grad_bias = _map_gradients(grad, hidden, weight)
        del hidden
        grad = torch.bmm(_repeat(weight.t(), x), grad)
        if kernels:
            grad_x, grad_factor = kernels.silu_product_backward(grad, x, *factor)
            return grad_x, grad_weight, grad_bias, grad_factor
        grad_factor = None
        if factor:
            grad_factor = activated.mul_(grad)
            grad.mul_(factor[0])
        return torch.ops.aten.silu_backward(grad, x), grad_weight, grad_bias, grad_factor
