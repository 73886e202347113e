"""Rows of different lengths laid end to end, and apart again."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fairseq_csp.ops.kernels import contiguous_positions, native_operators


def unpack_rows(packed: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> list[Tensor]:
    """Lay packed rows apart, each bucket of them beside one another.

    Args:
        packed: (1, channels, positions of all rows), any dtype.
        lengths: positions of each row.
        counts: how many rows each bucket has, in their order.

    Returns:
        One (rows, channels, positions of the longest) for each bucket, 0 beyond a row's length.

    Raises:
        ValueError: the lengths are not those of the rows.
    """
    if packed.shape[::2] != (1, sum(lengths)) or sum(counts) != len(lengths):
        raise ValueError(
            f"{len(lengths)} rows of {sum(lengths)} positions in buckets of {list(counts)} do not "
            f"make a packed row of shape {tuple(packed.shape)}"
        )
    return list(_Unpack.apply(packed, tuple(lengths), tuple(counts)))


def pack_rows(parts: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
    """Lay the rows of buckets end to end: what :func:`unpack_rows` undoes.

    Args:
        parts: one (rows, channels, positions) for each bucket, of one dtype.
        lengths: positions of each row; what stands beyond is left out.

    Returns:
        (1, channels, positions of all rows).

    Raises:
        ValueError: there is not a length for each row, or one is greater than its positions.
    """
    places = [part.size(2) for part in parts for _ in range(part.size(0))]
    if len(places) != len(lengths):
        raise ValueError(f"there are {len(lengths)} lengths for {len(places)} rows")
    if any(length > place for length, place in zip(lengths, places, strict=True)):
        raise ValueError(f"lengths {list(lengths)} are not all within rows of {places} positions")
    return _Pack.apply(tuple(lengths), *parts)


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, packed: Tensor, lengths: tuple[int, ...], counts: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        ctx.lengths = lengths
        return tuple(_apart(packed, lengths, counts))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _together(grads, ctx.lengths), None, None


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, lengths: tuple[int, ...], *parts: Tensor) -> Tensor:
        ctx.lengths = lengths
        ctx.shapes = [part.shape for part in parts]
        return _together(parts, lengths)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = _apart(grad, ctx.lengths, [shape[0] for shape in ctx.shapes])
        padded = (
            part if part.shape == shape else _wider(part, shape)
            for part, shape in zip(parts, ctx.shapes, strict=True)
        )
        return None, *padded


def _wider(part: Tensor, shape: torch.Size) -> Tensor:
    return torch.nn.functional.pad(part, (0, shape[2] - part.size(2)))


def _apart(packed: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> list[Tensor]:
    packed = contiguous_positions(packed)
    if kernels := native_operators(packed):
        return kernels.unpack_rows(packed, lengths, counts)
    rows = iter(packed[0].split(list(lengths), dim=1))
    parts, first = [], 0
    for count in counts:
        longest = max(lengths[first : first + count], default=0)
        part = packed.new_zeros(count, packed.size(1), longest)
        for target in part:
            row = next(rows)
            target[:, : row.size(1)] = row
        parts.append(part)
        first += count
    return parts


def _together(parts: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
    parts = [contiguous_positions(part) for part in parts]
    if parts and (kernels := native_operators(*parts)):
        return kernels.pack_rows(parts, lengths)
    rows = (row for part in parts for row in part)
    return torch.cat([row[:, :n] for row, n in zip(rows, lengths, strict=True)], dim=1)[None]
