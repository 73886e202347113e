"""Activations, gates, dropout and residuals in Triton, each of them in one pass.

The operators of ``gates.cpp``, by the same names and arguments, in the namespace
``fairseq_csp_triton``: tensors (batch, channels, positions) of one floating dtype with contiguous
positions, computed in float32 (float64 in its own). What is dropped is the same, bit for bit.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
LIBRARY = torch.library.Library("fairseq_csp_triton", "FRAGMENT")


@triton.jit
def _mixed(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _factors(seed, row, i, levels, scale, ACTIVE: tl.constexpr):
    """By what the numbers of a channel are multiplied: 0 or the scale; 1 without dropout."""
    if ACTIVE:
        draw = _mixed(seed.to(tl.uint64) + _mixed(row.to(tl.uint64) + 0x9E3779B97F4A7C15))
        key = draw.to(tl.uint32)
        # 16 bits a number; the threshold is rounded at random, so that p is exact
        threshold = ((draw >> 40).to(tl.int64) + levels) >> 24
        place = i % 64
        x = (i // 64 * 32 + place % 32).to(tl.uint32) * 0x9E3779B1 + key
        x = (x ^ (x >> 16)) * 0x7FEB352D
        x = (x ^ (x >> 15)) * 0x846CA68B
        x = (x ^ (x >> 16)) + key
        x = (x ^ (x >> 15)) * 0x2C1B3C6D
        x = x ^ (x >> 16)
        bits = tl.where(place < 32, x & 0xFFFF, x >> 16).to(tl.int64)
        factors = tl.where(bits < threshold, 0.0, scale)
    else:
        factors = tl.full(i.shape, 1.0, tl.float32)
    return factors


@triton.jit
def _keep(factor, x):
    # 0 for infinities too
    return tl.where(factor == 0, 0.0, factor * x)


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _silu_slope(x, gate):
    return gate * (1 + x * (1 - gate))


@triton.jit
def _load(pointer, batch_stride, channel_stride, row, channels, i, positions):
    place = row // channels * batch_stride + row % channels * channel_stride
    x = tl.load(pointer + place + i, mask=i < positions, other=0.0)
    if x.dtype != tl.float64:
        x = x.to(tl.float32)
    return x


@triton.jit(do_not_specialize=["seed", "levels"])
def _kernel(
    function: tl.constexpr,
    in0, in1, in2, in3, in4,
    out0, out1, out2,
    batch0, batch1, batch2, batch3, batch4,
    channel0, channel1, channel2, channel3, channel4,
    channels, positions, seed, levels, scale,
    ACTIVE: tl.constexpr,
    SEED_STORED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    if SEED_STORED:
        number = tl.load(seed)
    else:
        number = seed
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    factor = _factors(number, row, i, levels, scale, ACTIVE)
    a = _load(in0, batch0, channel0, row, channels, i, positions)
    to = row * positions + i
    inside = i < positions
    if function == "dropout":
        tl.store(out0 + to, _keep(factor, a), mask=inside)
    elif function == "silu_dropout":
        tl.store(out0 + to, _keep(factor, a * _sigmoid(a)), mask=inside)
    else:
        b = _load(in1, batch1, channel1, row, channels, i, positions)
        if function == "silu_product":
            tl.store(out0 + to, a * _sigmoid(a) * b, mask=inside)
        elif function == "dropout_add":
            tl.store(out0 + to, _keep(factor, a) + b, mask=inside)
        elif function == "silu_dropout_backward":
            tl.store(out0 + to, _keep(factor, a * _silu_slope(b, _sigmoid(b))), mask=inside)
        else:
            c = _load(in2, batch2, channel2, row, channels, i, positions)
            if function == "silu_product_backward":
                gate = _sigmoid(b)
                tl.store(out0 + to, a * c * _silu_slope(b, gate), mask=inside)
                tl.store(out1 + to, a * b * gate, mask=inside)
            else:
                d = _load(in3, batch3, channel3, row, channels, i, positions)
                if function == "gated_residual":
                    inner = c + d
                    candidate = _keep(factor, inner * _sigmoid(inner))
                    tl.store(out0 + to, a + _sigmoid(b) * (candidate - a), mask=inside)
                else:
                    # the gradient, then what gated_residual was given
                    gate = _sigmoid(c)
                    inner = d + _load(in4, batch4, channel4, row, channels, i, positions)
                    slope = _sigmoid(inner)
                    change = _keep(factor, inner * slope) - b
                    tl.store(out0 + to, a * (1 - gate), mask=inside)
                    tl.store(out1 + to, a * gate * (1 - gate) * change, mask=inside)
                    inner_grad = a * gate * _silu_slope(inner, slope)
                    tl.store(out2 + to, _keep(factor, inner_grad), mask=inside)


def _run(
    function: str, inputs: list[Tensor], count: int, p: float, seed: Tensor | None
) -> list[Tensor]:
    first = inputs[0]
    batch, channels, positions = first.shape
    outputs = [
        torch.empty(first.shape, dtype=first.dtype, device=first.device) for _ in range(count)
    ]
    block = min(BLOCK, max(64, triton.next_power_of_2(positions)))
    # what a function has no use for is not looked at
    # on the GPU it is read by the kernel, without waiting for it
    stored = seed is not None and seed.is_cuda
    given = inputs + [first] * (5 - len(inputs))
    with torch.cuda.device_of(first):
        _kernel[batch * channels, triton.cdiv(positions, block)](
            function,
            *given,
            *outputs,
            *[first] * (3 - count),
            *(x.stride(0) for x in given),
            *(x.stride(1) for x in given),
            channels,
            positions,
            seed if stored else 0 if seed is None else int(seed),
            int(p * (1 << 40)),
            1 / (1 - p) if p < 1 else 0.0,
            ACTIVE=p > 0,
            SEED_STORED=stored,
            BLOCK=block,
        )
    return outputs


def _define(name: str, inputs: str, count: int, drops: bool) -> None:
    """Register an operator with its shapes.

    Args:
        name: of the operator.
        inputs: their names.
        count: number of results.
        drops: whether it takes a probability and a seed.
    """
    names = inputs.split()
    arguments = ", ".join(f"Tensor {name}" for name in names)
    result = "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"
    LIBRARY.define(f"{name}({arguments}{', float p, Tensor? seed' if drops else ''}) -> {result}")

    def run(*given: Any) -> Tensor | tuple[Tensor, ...]:
        tensors, (p, seed) = given[: len(names)], given[len(names) :] or (0.0, None)
        outputs = _run(name, list(tensors), count, p, seed)
        return outputs[0] if count == 1 else tuple(outputs)

    def shapes(first: Tensor, *others: Tensor | float | None) -> Tensor | tuple[Tensor, ...]:
        outputs = [first.new_empty(first.shape) for _ in range(count)]
        return outputs[0] if count == 1 else tuple(outputs)

    for key in ("CUDA", "CPU"):
        LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"fairseq_csp_triton::{name}", shapes, lib=LIBRARY)


_define("silu_product", "x factor", 1, drops=False)
_define("silu_product_backward", "grad x factor", 2, drops=False)
_define("silu_dropout", "x", 1, drops=True)
_define("silu_dropout_backward", "grad x", 1, drops=True)
_define("dropout", "x", 1, drops=True)
_define("dropout_add", "x residual", 1, drops=True)
_define("gated_residual", "residual update direct mixed", 1, drops=True)
_define("gated_residual_backward", "grad residual update direct mixed", 3, drops=True)
