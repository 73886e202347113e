"""Dropout that does not wait for the random number generator on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fairseq_csp.ops.kernels import contiguous_positions, fused

LEVELS = 1 << 7
# seeds to take rather than to draw
_given: Iterator[Tensor] | None = None
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Set numbers to 0 with probability ``p`` and scale the others to the same expectation.

    PyTorch's own on a GPU. On a CPU that one draws a double for each number, in one thread. Here a
    hash of seed, row and position gives 16 bits, or, without the CPU kernels, one 64-bit draw
    serves eight numbers, with 7 bits for each. The threshold that they are compared with is rounded
    up or down at random for each row of the last dimension, so that ``p`` is exact.

    Args:
        x: floating, of one dimension at least.
        p: probability in [0, 1].
        training: whether to drop anything.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        ValueError: ``p`` is not a probability.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability is {p}; it must be between 0 and 1")
    if not training or p == 0:
        return x
    if fused(x):
        return _FusedDropout.apply(x, p, draw_seed())
    if x.device.type != "cpu" or torch.compiler.is_compiling() or p * LEVELS > LEVELS - 1:
        return F.dropout(x, p)
    return _Dropout.apply(x, p)


def draw_seed() -> Tensor:
    """Return 63 bits of PyTorch's generator, which seed a faster one.

    Returns:
        () int64, on the CPU; inside :func:`seeds_from` one of its tensor's.
    """
    if _given is not None:
        return next(_given)
    return torch.empty((), dtype=torch.int64).random_()


@contextmanager
def seeds_from(seeds: Tensor) -> Iterator[list[Tensor]]:
    """Take the seeds that are drawn inside from a tensor, in its order.

    A graph of a GPU's work draws anew with each replay when the tensor is filled before it.

    Args:
        seeds: (most,) int64.

    Yields:
        Those taken so far.
    """
    global _given
    taken: list[Tensor] = []

    def take() -> Iterator[Tensor]:
        for index in range(len(seeds)):
            taken.append(seeds[index])
            yield taken[-1]

    before, _given = _given, take()
    try:
        yield taken
    finally:
        _given = before


def drop_by_seed(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """Drop the numbers that follow from a seed, the same for the same seed and shape.

    Without a gradient: what calls it draws the same again in its backward pass.

    Args:
        x: (batch, channels, positions), any floating dtype.
        p: probability in (0, 1].
        seed: from :func:`draw_seed`.

    Returns:
        The shape and dtype of ``x``.
    """
    if kernels := fused(x):
        return kernels.dropout(x, p, seed)
    factors = keep_factors(x.shape, p, seed, x.device)
    return torch.where(factors == 0, 0, x * factors.to(x.dtype))


def keep_factors(shape: tuple[int, ...], p: float, seed: Tensor, device: torch.device) -> Tensor:
    """Return by what dropout multiplies each number: the hash of the kernels, bit for bit.

    A channel's key and threshold follow from the seed and its row, of 64 positions the first 32
    take the lower halves of 32 hashes, the others the upper ones (``gates/gates.cpp``).

    Args:
        shape: (batch, channels, positions).
        p: probability in (0, 1].
        seed: from :func:`draw_seed`.
        device: where to.

    Returns:
        (batch, channels, positions) float32, 0 or ``1 / (1 - p)``.
    """
    batch, channels, positions = shape
    rows = torch.arange(batch * channels, device=device)
    draw = _mixed(seed + _mixed(rows + _signed(0x9E3779B97F4A7C15)))
    key = (draw & _WORD)[:, None, None]
    rounding = (draw >> 40 & 0xFFFFFF).double() / (1 << 24)
    threshold = (rounding + p * (1 << 16)).long()[:, None, None]
    pairs = torch.arange(-(-positions // 64) * 32, device=device).view(-1, 32)
    x = pairs * 0x9E3779B1 + key & _WORD
    x = (x ^ x >> 16) * 0x7FEB352D & _WORD
    x = (x ^ x >> 15) * 0x846CA68B & _WORD
    x = (x ^ x >> 16) + key & _WORD
    x = (x ^ x >> 15) * 0x2C1B3C6D & _WORD
    x = x ^ x >> 16
    bits = torch.cat([x & 0xFFFF, x >> 16], dim=2).flatten(1)[:, :positions]
    kept = (bits >= threshold.squeeze(2)).view(shape)
    return kept.float() * (1 / (1 - p) if p < 1 else 0.0)


_WORD = 0xFFFFFFFF


def _mixed(x: Tensor) -> Tensor:
    """Mix int64 as unsigned 64-bit integers; products wrap around."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    return x >> by & (1 << 64 - by) - 1


def _signed(x: int) -> int:
    return x - (1 << 64)


class _FusedDropout(torch.autograd.Function):
    """16 bits a number, drawn again in the backward pass: nothing is kept."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, p: float, seed: Tensor) -> Tensor:
        ctx.drawn = p, seed
        return drop_by_seed(x, p, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        return drop_by_seed(contiguous_positions(grad), *ctx.drawn), None, None


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, p: float) -> Tensor:
        draws = np.random.SFC64(int(draw_seed())).random_raw(-(-x.numel() // 8))
        levels = torch.from_numpy(draws.view(np.int8))[: x.numel()].view(x.shape)
        dropped = torch.rand(*x.shape[:-1], 1).add_(p * LEVELS).to(torch.int8)
        # 7 random bits less the threshold: the sign, in all bits, is that of a number to drop
        kept = levels.bitwise_and_(LEVELS - 1).sub_(dropped).bitwise_right_shift_(7).bitwise_not_()
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - p)
        return _keep(x, kept, ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return _keep(grad, kept, ctx.scale), None


def _keep(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    """Scale what is kept; ``kept`` is -1 there, all of its bits, and 0 elsewhere."""
    bits = INTEGERS[x.element_size()]
    return kept.to(bits).bitwise_and_(x.view(bits)).view(x.dtype).mul_(scale)
