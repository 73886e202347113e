"""Normalisation over the channels in Triton: a tile of all channels and some positions a program.

The operators of ``norms.cpp``, by the same names and arguments, in the namespace
``fairseq_csp_triton``: (batch, channels, positions) of any floating dtype with contiguous
positions, computed in float32, for float64 in float64.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# numbers of a tile
TILE = 8192
LIBRARY = torch.library.Library("fairseq_csp_triton", "FRAGMENT")
LIBRARY.define("norm(Tensor x, Tensor weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)")
LIBRARY.define(
    "norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor mean, Tensor inverse) -> "
    "(Tensor, Tensor, Tensor)"
)


@triton.jit
def _wide(pointer, offsets, mask):
    x = tl.load(pointer + offsets, mask=mask, other=0.0)
    if x.dtype != tl.float64:
        x = x.to(tl.float32)
    return x


@triton.jit
def _place(batch_stride, channel_stride, positions, SIZE: tl.constexpr, SPAN: tl.constexpr):
    """Offsets of a tile's numbers, of its positions' statistics, and which there are."""
    parts = tl.cdiv(positions, SPAN)
    row = (tl.program_id(0) // parts).to(tl.int64)
    i = tl.program_id(0) % parts * SPAN + tl.arange(0, SPAN)
    c = tl.arange(0, SIZE)
    offsets = row * batch_stride + c[:, None] * channel_stride + i[None, :]
    return offsets, row * positions + i, c, i < positions


@triton.jit
def _norm_kernel(
    x, weight, bias, out, mean, inverse,
    batch_stride, channel_stride, channels, positions, eps,
    CENTRED: tl.constexpr,
    ONE_WEIGHT: tl.constexpr,
    SIZE: tl.constexpr,
    SPAN: tl.constexpr,
):  # fmt: skip
    offsets, statistic, c, there = _place(batch_stride, channel_stride, positions, SIZE, SPAN)
    inside = (c < channels)[:, None] & there[None, :]
    numbers = _wide(x, offsets, inside)
    if CENTRED:
        centre = tl.sum(numbers, axis=0) / channels
        numbers = tl.where(inside, numbers - centre[None, :], 0.0)
        tl.store(mean + statistic, centre, mask=there)
    factor = 1 / tl.sqrt(tl.sum(numbers * numbers, axis=0) / channels + eps)
    tl.store(inverse + statistic, factor, mask=there)
    normal = numbers * factor[None, :]
    if ONE_WEIGHT:
        result = normal * _wide(weight, c * 0, c < channels)[:, None]
    else:
        result = normal * _wide(weight, c, c < channels)[:, None]
    if CENTRED:
        result += _wide(bias, c, c < channels)[:, None]
    to, _, _, _ = _place(channels * positions, positions, positions, SIZE, SPAN)
    tl.store(out + to, result, mask=inside)


@triton.jit
def _norm_backward_kernel(
    grad, x, weight, mean, inverse, grad_x, weights, biases,
    grad_batch_stride, grad_channel_stride, batch_stride, channel_stride, channels, positions,
    CENTRED: tl.constexpr,
    ONE_WEIGHT: tl.constexpr,
    SIZE: tl.constexpr,
    SPAN: tl.constexpr,
):  # fmt: skip
    offsets, statistic, c, there = _place(batch_stride, channel_stride, positions, SIZE, SPAN)
    of_grad, _, _, _ = _place(grad_batch_stride, grad_channel_stride, positions, SIZE, SPAN)
    inside = (c < channels)[:, None] & there[None, :]
    given = _wide(grad, of_grad, inside)
    normal = _wide(x, offsets, inside)
    factor = _wide(inverse, statistic, there)[None, :]
    if CENTRED:
        normal = tl.where(inside, normal - _wide(mean, statistic, there)[None, :], 0.0)
    normal *= factor
    partial = tl.program_id(0).to(tl.int64) * channels + c
    tl.store(weights + partial, tl.sum(given * normal, axis=1), mask=c < channels)
    if CENTRED:
        tl.store(biases + partial, tl.sum(given, axis=1), mask=c < channels)
    if ONE_WEIGHT:
        given *= _wide(weight, c * 0, c < channels)[:, None]
    else:
        given *= _wide(weight, c, c < channels)[:, None]
    along = tl.sum(given * normal, axis=0) / channels
    result = given - normal * along[None, :]
    if CENTRED:
        result -= (tl.sum(given, axis=0) / channels)[None, :]
    to, _, _, _ = _place(channels * positions, positions, positions, SIZE, SPAN)
    tl.store(grad_x + to, result * factor, mask=inside)


def _sizes(x: Tensor) -> tuple[int, dict[str, int]]:
    """Return the number of programs, and a tile's size."""
    size = triton.next_power_of_2(x.size(1))
    span = min(max(1, TILE // size), triton.next_power_of_2(x.size(2)))
    return x.size(0) * triton.cdiv(x.size(2), span), {"SIZE": size, "SPAN": span}


def _statistics(x: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    inverse = x.new_empty(x.size(0), 1, x.size(2), dtype=wide)
    return torch.empty_like(inverse) if centred else inverse.new_empty(0), inverse


def _norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    out = x.new_empty(x.shape)
    mean, inverse = _statistics(x, bias is not None)
    count, sizes = _sizes(x)
    with torch.cuda.device_of(x):
        _norm_kernel[(count,)](
            x, weight, weight if bias is None else bias, out, mean, inverse,
            x.stride(0), x.stride(1), x.size(1), x.size(2), eps,
            CENTRED=bias is not None, ONE_WEIGHT=weight.numel() == 1, **sizes,
        )  # fmt: skip
    return out, mean, inverse


def _norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    centred = mean.numel() > 0
    grad_x = x.new_empty(x.shape)
    count, sizes = _sizes(x)
    # each program's part of the sums over batch and positions
    weights = inverse.new_empty(count, x.size(1))
    biases = torch.empty_like(weights) if centred else weights
    with torch.cuda.device_of(x):
        _norm_backward_kernel[(count,)](
            grad, x, weight, mean, inverse, grad_x, weights, biases,
            grad.stride(0), grad.stride(1), x.stride(0), x.stride(1), x.size(1), x.size(2),
            CENTRED=centred, ONE_WEIGHT=weight.numel() == 1, **sizes,
        )  # fmt: skip
    grad_weight = weights.sum(0) if weight.numel() == x.size(1) else weights.sum().view(1)
    grad_bias = biases.sum(0) if centred else weights.new_zeros(0)
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


for _key in ("CUDA", "CPU"):
    LIBRARY.impl("norm", _norm, _key)
    LIBRARY.impl("norm_backward", _norm_backward, _key)


@torch.library.register_fake("fairseq_csp_triton::norm", lib=LIBRARY)
def _(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple:
    return x.new_empty(x.shape), *_statistics(x, bias is not None)


@torch.library.register_fake("fairseq_csp_triton::norm_backward", lib=LIBRARY)
def _(grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor) -> tuple:
    bias = weight.new_empty(x.size(1) if mean.numel() else 0)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias
