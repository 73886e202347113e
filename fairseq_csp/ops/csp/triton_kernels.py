"""CSP with pairs, or no groups, in Triton: one pass over the numbers of each channel.

As in ``csp.cpp``, a sequence of n numbers is read from ``(i + read) mod n`` and written to
``(i + write) mod n``; the pairs are those of i. A program has ``PAIRS`` pairs of one channel of one
sequence, and what lies beyond n becomes 0.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PAIRS = 512
LIBRARY = torch.library.Library("fairseq_csp_triton", "FRAGMENT")
LIBRARY.define(
    "csp_permute(Tensor values, Tensor? lengths, Tensor shifts, int group, bool shift_first, "
    "bool descending) -> (Tensor, Tensor)"
)
LIBRARY.define(
    "csp_restore(Tensor grad, Tensor? lengths, Tensor shifts, Tensor kept, int group, "
    "bool shift_first) -> Tensor"
)


def permute(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Shift and sort; as :func:`fairseq_csp.ops.csp.eager.permute`, with pairs or groups of one."""
    return torch.ops.fairseq_csp_triton.csp_permute(*arguments)


def restore(*arguments: Any) -> Tensor:
    """Undo :func:`permute`; as :func:`fairseq_csp.ops.csp.eager.restore`."""
    return torch.ops.fairseq_csp_triton.csp_restore(*arguments)


def empty_kept(values: Tensor, group: int, _: Tensor | None = None) -> Tensor:
    """Return room for the exchanges: (batch, channels, bytes) uint8, a bit a pair."""
    batch, channels, positions = values.shape
    count = -(-positions // 16) if group == 2 else 0
    return values.new_empty(batch, channels, count, dtype=torch.uint8)


def _permute(
    values: Tensor,
    lengths: Tensor | None,
    shifts: Tensor,
    group: int,
    shift_first: bool,
    descending: bool,
) -> tuple[Tensor, Tensor]:
    out, kept = values.new_empty(values.shape), empty_kept(values, group)
    _launch(values, out, kept, lengths, shifts, group, shift_first, descending, undo=False)
    return out, kept


def _restore(
    grad: Tensor,
    lengths: Tensor | None,
    shifts: Tensor,
    kept: Tensor,
    group: int,
    shift_first: bool,
) -> Tensor:
    out = grad.new_empty(grad.shape)
    _launch(grad, out, kept, lengths, shifts, group, shift_first, False, undo=True)
    return out


for _key in ("CUDA", "CPU"):
    LIBRARY.impl("csp_permute", _permute, _key)
    LIBRARY.impl("csp_restore", _restore, _key)


@torch.library.register_fake("fairseq_csp_triton::csp_permute", lib=LIBRARY)
def _(values: Tensor, lengths: Tensor | None, shifts: Tensor, group: int, *others: bool) -> tuple:
    return values.new_empty(values.shape), empty_kept(values, group)


@torch.library.register_fake("fairseq_csp_triton::csp_restore", lib=LIBRARY)
def _(grad: Tensor, *others: object) -> Tensor:
    return grad.new_empty(grad.shape)


def _launch(
    source: Tensor,
    target: Tensor,
    kept: Tensor,
    lengths: Tensor | None,
    shifts: Tensor,
    group: int,
    shift_first: bool,
    descending: bool,
    undo: bool,
) -> None:
    batch, channels, positions = source.shape
    # a small block where sequences are short; 8 pairs fill a byte
    pairs = min(PAIRS, max(8, triton.next_power_of_2(-(-positions // 2))))
    grid = (batch * channels, triton.cdiv(positions, 2 * pairs))
    with torch.cuda.device_of(source):
        _permute_kernel[grid](
            source,
            target,
            kept,
            source if lengths is None else lengths,
            shifts,
            channels,
            positions,
            source.stride(0),
            source.stride(1),
            kept.size(2),
            0 if shifts.size(0) == 1 else channels,
            HAS_LENGTHS=lengths is not None,
            # the forward pass reads shifted where the shift comes first, and so does the other one
            # where it comes last
            SHIFT_READ=shift_first != undo,
            SORT=group == 2,
            DESCENDING=descending,
            UNDO=undo,
            PAIRS=pairs,
        )


@triton.jit
def _permute_kernel(
    source,
    target,
    kept,
    lengths,
    shifts,
    channels,
    positions,
    batch_stride,
    channel_stride,
    kept_size,
    shift_stride,
    HAS_LENGTHS: tl.constexpr,
    SHIFT_READ: tl.constexpr,
    SORT: tl.constexpr,
    DESCENDING: tl.constexpr,
    UNDO: tl.constexpr,
    PAIRS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    sequence, channel = row // channels, row % channels
    n = positions
    if HAS_LENGTHS:
        n = tl.load(lengths + sequence).to(tl.int32)
    shift = tl.load(shifts + sequence * shift_stride + channel)
    # a shift to the right reads from the left, and is undone the other way round
    if SHIFT_READ != UNDO:
        back = n - shift
    else:
        back = shift
    i = tl.program_id(1) * (2 * PAIRS) + tl.arange(0, 2 * PAIRS)
    valid = i < n
    moved = i + back
    moved = tl.where(moved >= n, moved - n, moved)
    if SHIFT_READ:
        read, write = moved, i
    else:
        read, write = i, tl.where(valid, moved, i)
    x = tl.load(
        source + sequence * batch_stride + channel * channel_stride + read, mask=valid, other=0.0
    )
    if SORT:
        first, second = tl.split(tl.reshape(x, (PAIRS, 2)))
        pair = tl.program_id(1) * PAIRS + tl.arange(0, PAIRS)
        bit = pair % 8
        byte = tl.program_id(1) * (PAIRS // 8) + tl.arange(0, PAIRS // 8)
        place = kept + row * kept_size
        if UNDO:
            bits = tl.load(place + pair // 8, mask=pair // 8 < kept_size, other=0).to(tl.int32)
            swap = (bits >> bit) & 1 == 1
        else:
            if first.dtype == tl.float64:
                a, b = first, second
            else:
                a, b = first.to(tl.float32), second.to(tl.float32)
            # a stable sort that puts NaN last
            if DESCENDING:
                in_order = a >= b
            else:
                in_order = a <= b
            swap = (in_order == 0) & (b == b) & (2 * pair + 1 < n)
            bits = tl.reshape(swap.to(tl.int32) << bit, (PAIRS // 8, 8))
            tl.store(place + byte, tl.sum(bits, axis=1).to(tl.uint8), mask=byte < kept_size)
        x = tl.reshape(
            tl.join(tl.where(swap, second, first), tl.where(swap, first, second)), (2 * PAIRS,)
        )
    tl.store(target + row * positions + write, x, mask=i < positions)
