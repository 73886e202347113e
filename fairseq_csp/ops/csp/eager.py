"""The operator by PyTorch's own operators, on any device: the reference of the other kernels."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# measured on 2 CPU cores: above this size torch.sort is faster than compare-exchange rounds
LARGEST_NETWORK = 8
# most numbers that are permuted together on a CPU, which bounds the memory for temporary ones
BLOCK = 1 << 20
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def permute(
    values: Tensor,
    lengths: Tensor | None,
    shifts: Tensor,
    group: int,
    shift_first: bool,
    descending: bool,
) -> tuple[Tensor, Tensor]:
    """Shift and sort (batch, channels, positions).

    Args:
        values: any floating dtype; the positions are contiguous.
        lengths: (batch,) int64, valid positions of each sequence; None: all.
        shifts: (batch, channels) integers, or (1, channels) where all lengths are one.
        group: positions in a sorted group, at most all.
        shift_first: whether the shift comes before the sort.
        descending: sort from the largest to the smallest.

    Returns:
        The permuted values, contiguous, and what undoes the sort, in the form of
        :func:`empty_kept`.
    """
    out, kept = _result(values, lengths), empty_kept(values, group)
    if lengths is not None:
        kept.zero_()
    for block in _blocks(values, lengths, shifts):
        part, target = block.cut(values), block.cut(out)
        if shift_first:
            part = _shift(part, block)
        # a NaN stays behind every valid value of its group
        part = _fill(part, block, math.nan)
        part = _sort(part, group, descending, target if shift_first else None, block.cut(kept))
        if not shift_first:
            part = _shift(part, block, out=target)
        part = _fill(part, block, 0.0)
        if part is not target:
            target.copy_(part)
    return out, kept


def restore(
    grad: Tensor,
    lengths: Tensor | None,
    shifts: Tensor,
    kept: Tensor,
    group: int,
    shift_first: bool,
) -> Tensor:
    """Undo :func:`permute`, which is its backward pass.

    Args:
        grad: (batch, channels, positions), any floating dtype; the positions are contiguous.
        lengths: as given to :func:`permute`.
        shifts: as given to it.
        kept: what it returned beside the values.
        group: as given to it.
        shift_first: as given to it.

    Returns:
        (batch, channels, positions), contiguous, 0 beyond a sequence's length.
    """
    out = _result(grad, lengths)
    for block in _blocks(grad, lengths, shifts):
        part, target = block.cut(grad), block.cut(out)
        if not shift_first:
            part = _shift(part, block, back=True)
        part = _unsort(_fill(part, block, 0.0), block.cut(kept), group)
        if shift_first:
            part = _shift(part, block, back=True, out=target)
        part = _fill(part, block, 0.0)
        if part is not target:
            target.copy_(part)
    return out


def empty_kept(values: Tensor, group: int, _: Tensor | None = None) -> Tensor:
    """Return room for what undoes the sort.

    Args:
        values: (batch, channels, positions).
        group: positions in a sorted group.

    Returns:
        For pairs (batch, channels, pairs) bool, true where they are exchanged; for larger groups
        (batch, channels, positions) integers, the index that each output had inside its group; for
        groups of one nothing.
    """
    batch, channels, positions = values.shape
    if group <= 2:
        pairs = positions // 2 if group == 2 else 0
        return values.new_empty(batch, channels, pairs, dtype=torch.bool)
    return values.new_empty(batch, channels, positions, dtype=_smallest_integer(group))


def _result(values: Tensor, lengths: Tensor | None) -> Tensor:
    return (values.new_empty if lengths is None else values.new_zeros)(values.shape)


@dataclass(frozen=True)
class _Block:
    """Sequences and channels that are permuted together.

    Attributes:
        sequences: which sequences.
        channels: which channels.
        positions: their valid positions, at least those of the longest sequence.
        shifts: (sequences or 1, channels) integers.
        lengths: (sequences, 1, 1), where they may differ; None where all have ``positions``.
    """

    sequences: slice
    channels: slice
    positions: int
    shifts: Tensor
    lengths: Tensor | None = None

    def cut(self, values: Tensor) -> Tensor:
        """Return the block's part of (batch, channels, positions or fewer)."""
        return values[self.sequences, self.channels, : self.positions]


def _blocks(values: Tensor, lengths: Tensor | None, shifts: Tensor) -> Iterator[_Block]:
    """Divide (batch, channels, positions) into blocks.

    On a CPU the sequences of a block have one length, so that nothing is done for padding. On a
    GPU, where a call costs more, all is one block.
    """
    if values.device.type != "cpu":
        yield _one_block(values, lengths, shifts)
        return
    batch, channels, positions = values.shape
    together = max(BLOCK // (channels * positions), 1) if lengths is None else 1
    for first in range(0, batch, together):
        length = positions if lengths is None else int(lengths[first])
        if length:
            sequences = slice(first, first + together)
            row = first % len(shifts)
            width = max(BLOCK // length, 1)
            for start in range(0, channels, width):
                part = slice(start, start + width)
                yield _Block(sequences, part, length, shifts[row : row + 1, part])


def _one_block(values: Tensor, lengths: Tensor | None, shifts: Tensor) -> _Block:
    batch, channels, positions = values.shape
    counts = None if lengths is None else lengths[:, None, None]
    return _Block(slice(batch), slice(channels), positions, shifts, counts)


def _fill(part: Tensor, block: _Block, number: float) -> Tensor:
    """Set what lies beyond its sequence's length."""
    if block.lengths is None:
        return part
    position = torch.arange(block.positions, device=part.device)
    return part.masked_fill(position >= block.lengths, number)


def _shift(values: Tensor, block: _Block, back: bool = False, out: Tensor | None = None) -> Tensor:
    """Shift each channel of a block circularly inside its sequence's length, or back again.

    A sequence with its end before it, or its beginning after it, holds each shift of itself as a
    window: one window is copied for each channel, without an index for each number. The result may
    be in ``out``.
    """
    shifts = block.shifts.long()
    if block.lengths is not None:
        return _shift_each(values, block.lengths[:, 0], shifts, back)
    # a GPU is not asked for the largest
    largest = int(shifts.max()) if values.device.type == "cpu" else block.positions
    if largest == 0:
        return values
    if back:
        line, first = torch.cat([values, values[..., :largest]], dim=2), shifts[0]
    else:
        line, first = torch.cat([values[..., -largest:], values], dim=2), largest - shifts[0]
    windows = line.unfold(2, block.positions, 1)
    channels = torch.arange(values.size(1), device=values.device)
    if out is None:
        return windows[:, channels, first]
    return torch.ops.aten.index.Tensor_out(windows, [None, channels, first], out=out)


def _shift_each(values: Tensor, lengths: Tensor, shifts: Tensor, back: bool) -> Tensor:
    """Shift sequences of different lengths (sequences, 1): each is two windows of a line."""
    batch, channels, positions = values.shape
    windows = torch.nn.functional.pad(values, (positions, positions)).unfold(2, positions, 1)
    row = torch.arange(batch, device=values.device)[:, None]
    channel = torch.arange(channels, device=values.device)
    # so many of the sequence's last come first
    moved = lengths - shifts if back else shifts
    last = windows[row, channel, positions + lengths - moved]
    rest = windows[row, channel, positions - moved]
    position = torch.arange(positions, device=values.device)
    return torch.where(position < moved.unsqueeze(2), last, rest)


def _sort(values: Tensor, group: int, descending: bool, out: Tensor | None, kept: Tensor) -> Tensor:
    """Sort groups of consecutive positions; write what :func:`_unsort` needs to ``kept``.

    The result may be in ``out``.
    """
    positions = values.size(2)
    group = min(group, positions)
    if group == 1:
        return values
    if kept.dtype == torch.bool:
        even = positions // 2 * 2
        pair = values[..., 0:even:2], values[..., 1:even:2]
        swap = _out_of_order(*pair, descending, kept[..., : even // 2], _holds_no_nan(values))
        return _swap_pairs(values, swap, out)
    grouped = _groups(values, group)
    # a round is some launches on a GPU
    if group <= LARGEST_NETWORK and values.device.type == "cpu":
        ordered, indices = _sort_by_exchanges(grouped, descending)
    else:
        keys = -grouped if descending else grouped
        indices = keys.sort(dim=3, stable=True).indices
        ordered = grouped.gather(3, indices)
    kept.copy_(indices.flatten(2)[..., :positions])
    return ordered.flatten(2)[..., :positions].contiguous()


def _unsort(grad: Tensor, kept: Tensor, group: int) -> Tensor:
    """Undo :func:`_sort`."""
    positions = grad.size(2)
    group = min(group, positions)
    if group == 1:
        return grad
    if kept.dtype == torch.bool:
        return _swap_pairs(grad, kept[..., : positions // 2])
    first = torch.arange(positions, device=grad.device) // group * group
    # a plain write: no two indices are equal
    return torch.empty_like(grad, memory_format=torch.contiguous_format).scatter_(
        2, first + kept, grad
    )


def _holds_no_nan(values: Tensor) -> bool:
    """Whether one sum can tell it; not asked of a GPU, which would have to be waited for."""
    return values.device.type == "cpu" and math.isfinite(values.sum())


def _out_of_order(
    first: Tensor, second: Tensor, descending: bool, out: Tensor, no_nan: bool = False
) -> Tensor:
    """Tell where a stable sort that puts NaN last exchanges two neighbours."""
    if no_nan:
        return (torch.lt if descending else torch.gt)(first, second, out=out)
    # false when either is NaN; only a NaN in front of a number moves
    (torch.ge if descending else torch.le)(first, second, out=out)
    return out.logical_not_().logical_and_(second == second)


def _swap_pairs(values: Tensor, swap: Tensor, out: Tensor | None = None) -> Tensor:
    even = values.size(2) // 2 * 2
    if out is None:
        out = torch.empty_like(values, memory_format=torch.contiguous_format)
    _exchange(
        (values[..., 0:even:2], values[..., 1:even:2]),
        swap,
        (out[..., 0:even:2], out[..., 1:even:2]),
    )
    out[..., even:] = values[..., even:]
    return out


def _exchange(
    pair: tuple[Tensor, Tensor], swap: Tensor, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Exchange two tensors' numbers where ``swap`` is true, bit for bit.

    By integer arithmetic, because a branch on each pair (``torch.where``) costs four times as much
    where the processor cannot foresee it.
    """
    bits = _INTEGERS[pair[0].element_size()]
    first, second = (numbers.view(bits) for numbers in pair)
    difference = (first ^ second).bitwise_and_(swap.to(bits).neg_())
    if out is None:
        out = torch.empty_like(pair[0]), torch.empty_like(pair[1])
    torch.bitwise_xor(first, difference, out=out[0].view(bits))
    torch.bitwise_xor(second, difference, out=out[1].view(bits))
    return out


def _groups(values: Tensor, group: int) -> Tensor:
    """View (batch, channels, positions) as (batch, channels, groups, group), filled up by NaN."""
    missing = -values.size(2) % group
    if missing:
        values = torch.nn.functional.pad(values, (0, missing), value=math.nan)
    return values.unflatten(2, (-1, group))


def _sort_by_exchanges(grouped: Tensor, descending: bool) -> tuple[Tensor, Tensor]:
    """Odd-even transposition sort: only neighbours are exchanged, so it is stable."""
    group = grouped.size(3)
    columns = list(grouped.unbind(3))
    indices = [torch.full_like(columns[0], k, dtype=torch.uint8) for k in range(group)]
    for round_ in range(group):
        for k in range(round_ % 2, group - 1, 2):
            swap = torch.empty_like(columns[k], dtype=torch.bool)
            _out_of_order(columns[k], columns[k + 1], descending, swap)
            for lane in (columns, indices):
                lane[k : k + 2] = _exchange((lane[k], lane[k + 1]), swap)
    return torch.stack(columns, dim=3), torch.stack(indices, dim=3)


def _smallest_integer(count: int) -> torch.dtype:
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if count - 1 <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64
