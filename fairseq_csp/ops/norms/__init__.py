"""Normalisation over the channels of (batch, channels, positions), without transposing.

PyTorch's own layer norm wants the channels last; on this layout it would copy its input and its
output. Statistics are taken in float32 or wider. The kernels (``norms.cpp``, and on a GPU
``triton_kernels.py``) read each number from memory once, forward and backward.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fairseq_csp.ops.kernels import contiguous_positions, native_operators, triton_operators

# of the kernels on a GPU, which hold all channels of a position at once
MOST_CHANNELS = 4096


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return ``weight * x / sqrt(mean(x^2) + eps)``, the mean over the channels.

    Args:
        x: (batch, channels, positions), any floating dtype, as the parameters.
        weight: (channels,), or (1,) for all channels alike.
        eps: added to the mean square.

    Returns:
        (batch, channels, positions), the dtype of ``x``.
    """
    if _kernels(x, weight):
        return _FusedNorm.apply(x, weight, None, eps)
    return _RMSNorm.apply(x, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return ``weight * (x - mean) / sqrt(variance + eps) + bias``, both over the channels.

    Args:
        x: (batch, channels, positions), any floating dtype, as the parameters.
        weight: (channels,).
        bias: (channels,).
        eps: added to the variance.

    Returns:
        (batch, channels, positions), the dtype of ``x``.
    """
    if _kernels(x, weight, bias):
        return _FusedNorm.apply(x, weight, bias, eps)
    return _LayerNorm.apply(x, weight, bias, eps)


def _kernels(x: Tensor, *parameters: Tensor) -> Any | None:
    """Return the operators that serve, None where none do."""
    if kernels := native_operators(x, *parameters):
        return kernels
    fits = x.size(1) <= MOST_CHANNELS
    return triton_operators(x, *parameters) if fits else None


class _FusedNorm(torch.autograd.Function):
    """Layer norm, or RMS norm where there is no bias."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> Tensor:
        out, mean, inverse = _kernels(x).norm(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.centred = bias is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward = _kernels(ctx.saved_tensors[0]).norm_backward
        grad_x, grad_weight, grad_bias = backward(contiguous_positions(grad), *ctx.saved_tensors)
        return grad_x, grad_weight, grad_bias if ctx.centred else None, None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = _mean_of_product(x, x).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * _matching(inverse * weight.unsqueeze(1), x)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        column = weight.to(inverse.dtype).unsqueeze(1)
        product = grad * x
        if weight.numel() == 1:
            mean = product.sum(1, keepdim=True).to(inverse.dtype).div_(x.size(1))
            grad_weight = (mean * inverse).sum().view(1) * x.size(1)
            mean *= column
        else:
            mean = (product * column).sum(1, keepdim=True, dtype=inverse.dtype) / x.size(1)
            grad_weight = (product * inverse).sum((0, 2))
        scaled = grad * _matching(inverse * column, grad)
        grad_x = scaled.addcmul_(x, _matching(inverse**3 * mean, x), value=-1)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        centred = x - x.mean(1, keepdim=True, dtype=wide)
        inverse = _mean_of_product(centred, centred).add_(eps).rsqrt_()
        normal = centred.mul_(inverse)
        ctx.save_for_backward(normal.to(x.dtype), weight, inverse)
        out = torch.addcmul(bias.to(wide)[:, None], normal, weight.to(wide)[:, None])
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        normal, weight, inverse = ctx.saved_tensors
        wide = inverse.dtype
        grad_bias = grad.sum((0, 2), dtype=wide)
        grad_weight = (grad * normal).sum((0, 2), dtype=wide)
        grad_normal = grad * weight.to(wide)[:, None]
        projected = _mean_of_product(grad_normal, normal)
        grad_normal -= grad_normal.mean(1, keepdim=True)
        grad_x = grad_normal.addcmul_(normal.to(wide), projected, value=-1).mul_(inverse)
        return (
            grad_x.to(normal.dtype),
            grad_weight.to(weight.dtype),
            grad_bias.to(weight.dtype),
            None,
        )


def _mean_of_product(a: Tensor, b: Tensor) -> Tensor:
    """Mean over the channels, (batch, 1, positions), in float32 or wider."""
    wide = torch.promote_types(a.dtype, torch.float32)
    if a.dtype == torch.float16:
        # squares may not fit
        a = a.to(wide)
    return (a * b).sum(1, keepdim=True, dtype=wide).div_(a.size(1))


def _matching(scale: Tensor, x: Tensor) -> Tensor:
    """Bring a float32 scale to bfloat16 where ``x`` is; float16 would not hold its range.

    A product of two dtypes takes several times as long on a CPU.
    """
    return scale.to(x.dtype) if x.dtype == torch.bfloat16 else scale
