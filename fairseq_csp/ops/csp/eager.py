"""The operator by PyTorch's own operators, on any device."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fairseq_csp.ops.csp.options import FULL

# measured on 2 CPU cores: above this size torch.sort is faster than compare-exchange rounds
LARGEST_NETWORK = 8
# most numbers that are permuted together on a CPU, which bounds the memory for temporary ones
BLOCK = 1 << 20
# positions that are transposed together
TRANSPOSED = 512
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Permutation:
    """What is to be done to the channels of a batch.

    Attributes:
        lengths: valid positions of each sequence.
        shifts: the shift of each channel, by sequence length.
        group_size: positions in a sorted group, or ``"full"``.
        shift_first: whether the shift comes before the sort.
        descending: sort from the largest to the smallest.
    """

    lengths: tuple[int, ...]
    shifts: dict[int, tuple[int, ...]]
    group_size: int | str
    shift_first: bool
    descending: bool


def permute(values: Tensor, permutation: Permutation, blocks: list["Block"]) -> list[Tensor]:
    """Shift and sort (batch, channels, positions).

    Args:
        values: any floating dtype, any strides.
        permutation: what is to be done.
        blocks: what is done together, from :func:`divide`.

    Returns:
        The permuted values, contiguous, and then what :func:`restore` needs: of each block, the
        index of each output inside its group.
    """
    kept = []

    def function(part: Tensor, block: Block, out: Tensor | None) -> Tensor:
        if permutation.shift_first:
            part = _shift(part, block, permutation.shifts)
        # a NaN stays behind every valid value of its group
        part = block.fill(part, math.nan)
        part, indices = _sort(
            part,
            permutation.group_size,
            permutation.descending,
            out if permutation.shift_first else None,
        )
        kept.append(indices)
        if not permutation.shift_first:
            part = _shift(part, block, permutation.shifts, out=out)
        return block.fill(part, 0.0)

    return [_in_blocks(contiguous(values), permutation.lengths, blocks, function), *kept]


def restore(
    grad: Tensor, permutation: Permutation, blocks: list["Block"], kept: Sequence[Tensor]
) -> Tensor:
    """Undo :func:`permute`, which is its backward pass.

    Args:
        grad: (batch, channels, positions), any floating dtype, any strides.
        permutation: what was done.
        blocks: those it was done in.
        kept: what :func:`permute` returned behind the values.

    Returns:
        (batch, channels, positions), contiguous, 0 beyond a sequence's length.
    """
    remaining = iter(kept)

    def function(part: Tensor, block: Block, out: Tensor | None) -> Tensor:
        if not permutation.shift_first:
            part = _shift(part, block, permutation.shifts, back=True)
        part = _unsort(block.fill(part, 0.0), next(remaining))
        if permutation.shift_first:
            part = _shift(part, block, permutation.shifts, back=True, out=out)
        return block.fill(part, 0.0)

    return _in_blocks(contiguous(grad), permutation.lengths, blocks, function)


@lru_cache(maxsize=65536)
def _on_device(shifts: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(shifts).to(device)


@dataclass(frozen=True)
class Block:
    """Sequences, channels and positions that are permuted together.

    Attributes:
        sequences: which sequences.
        channels: which channels.
        positions: valid positions of the longest sequence.
        lengths: those of each sequence, where they differ; None where all have ``positions``.
    """

    sequences: slice
    channels: slice
    positions: int
    lengths: tuple[int, ...] | None = None

    def cut(self, values: Tensor) -> Tensor:
        """Return the block's part of (batch, channels, positions)."""
        return values[self.sequences, self.channels, : self.positions]

    def fill(self, part: Tensor, number: float) -> Tensor:
        """Set what lies beyond its sequence's length."""
        if self.lengths is None:
            return part
        position = torch.arange(self.positions, device=part.device)
        return part.masked_fill(position >= self.counts(part.device), number)

    def counts(self, device: torch.device) -> Tensor:
        """Return (sequences, 1, 1) int64: the lengths."""
        return torch.tensor(self.lengths).to(device, non_blocking=True)[:, None, None]


def divide(values: Tensor, lengths: tuple[int, ...]) -> list[Block]:
    """Divide (batch, channels, positions) into blocks.

    On a CPU the sequences of a block have one length, so that nothing is done for padding. On a
    GPU, where a call costs more, all is one block.
    """
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return one_block(values, lengths)
    batch, channels, positions = values.shape
    together = 1
    if all(n == positions for n in lengths):
        together = max(BLOCK // (channels * positions), 1)
    blocks = []
    for first in range(0, batch, together):
        if length := lengths[first]:
            width = max(BLOCK // length, 1)
            sequences = slice(first, first + together)
            parts = [slice(start, start + width) for start in range(0, channels, width)]
            blocks += [Block(sequences, part, length) for part in parts]
    return blocks


def one_block(values: Tensor, lengths: tuple[int, ...]) -> list[Block]:
    """Return all of (batch, channels, positions) as one block."""
    batch, channels, _ = values.shape
    longest = max(lengths, default=0)
    same = all(n == longest for n in lengths)
    return [Block(slice(batch), slice(channels), longest, None if same else lengths)]


def _in_blocks(
    values: Tensor,
    lengths: tuple[int, ...],
    blocks: list[Block],
    function: Callable[[Tensor, Block, Tensor | None], Tensor],
) -> Tensor:
    """Apply a function to each block of (batch, channels, positions); 0 where there is none.

    Args:
        values: (batch, channels, positions), the positions contiguous.
        lengths: valid positions of each sequence.
        blocks: which they are.
        function: takes and returns a block; it may return the third tensor with the result in it.
    """
    full = all(n == values.size(2) for n in lengths)
    if full and len(blocks) == 1:
        return function(values, blocks[0], None)
    out = (values.new_empty if full else values.new_zeros)(values.shape)
    for block in blocks:
        target = block.cut(out)
        result = function(block.cut(values), block, target)
        if result is not target:
            target.copy_(result)
    return out


def contiguous(values: Tensor) -> Tensor:
    """Return (batch, rows, columns) with contiguous columns, the input itself where they are."""
    if values.stride(2) == 1:
        return values
    on_cpu = values.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and values.dtype == torch.float32 and values.transpose(1, 2).is_contiguous():
        return _shuffled(values.transpose(1, 2))
    out = values.new_empty(values.shape)
    # part by part: lines of memory are used again while they are in the cache
    for source, target in zip(values.split(TRANSPOSED, 2), out.split(TRANSPOSED, 2), strict=True):
        target.copy_(source)
    return out


def _shuffled(matrices: Tensor) -> Tensor:
    """Transpose contiguous (batch, rows, columns) into contiguous (batch, columns, rows).

    As a channel shuffle of pixels whose channels are a whole matrix: PyTorch has vector
    instructions for that in float32, and takes a quarter of the time of a strided copy.
    """
    batch, rows, columns = matrices.shape
    pixels = matrices.view(1, batch, 1, rows * columns).permute(0, 3, 1, 2)
    pixels = torch.nn.functional.channel_shuffle(pixels, rows)
    return pixels.permute(0, 2, 3, 1).reshape(batch, columns, rows)


def _shift(
    values: Tensor,
    block: Block,
    shifts: dict[int, tuple[int, ...]],
    back: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Shift each channel of a block circularly inside its sequence's length, or back again.

    The result may be in ``out``.
    """
    chosen = [shifts[n][block.channels] for n in block.lengths or (block.positions,)]
    largest = max(map(max, chosen))
    if largest == 0:
        return values
    table = torch.stack([_on_device(row, values.device) for row in chosen])
    if block.lengths is None:
        # a sequence with its end before it, or its beginning after it, holds each shift of itself
        # as a window: one window is copied for each channel, without an index for each number
        channels = torch.arange(values.size(1), device=values.device)
        if back:
            line, first = torch.cat([values, values[..., :largest]], dim=2), table[0]
        else:
            line = torch.cat([values[..., -largest:], values], dim=2)
            first = largest - table[0]
        windows = line.unfold(2, block.positions, 1)
        if out is None:
            return windows[:, channels, first]
        return torch.ops.aten.index.Tensor_out(windows, [None, channels, first], out=out)
    position = torch.arange(block.positions, device=values.device)
    source = position + table.unsqueeze(2) if back else position - table.unsqueeze(2)
    return values.gather(2, source.remainder_(block.counts(values.device).clamp_(min=1)))


def _sort(
    values: Tensor, group_size: int | str, descending: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sort groups of consecutive positions; also return what :func:`_unsort` needs.

    The result may be in ``out``.
    """
    positions = values.size(2)
    group = positions if group_size == FULL else min(group_size, positions)
    if group == 2:
        even = positions // 2 * 2
        pair = values[..., 0:even:2], values[..., 1:even:2]
        swap = _out_of_order(*pair, descending, _holds_no_nan(values))
        return _swap_pairs(values, swap, out), swap
    grouped = _groups(values, group, math.nan)
    if group <= LARGEST_NETWORK:
        ordered, indices = _sort_by_exchanges(grouped, descending)
    else:
        keys = -grouped if descending else grouped
        indices = keys.sort(dim=3, stable=True).indices
        ordered = grouped.gather(3, indices)
        indices = indices.to(_smallest_integer(group))
    return ordered.flatten(2)[..., :positions].contiguous(), indices


def _unsort(grad: Tensor, indices: Tensor) -> Tensor:
    """Undo :func:`_sort`."""
    if indices.dtype == torch.bool:
        return _swap_pairs(grad, indices)
    grouped = _groups(grad, indices.size(3), 0.0)
    # a plain write: within a group no two indices are equal
    unsorted = torch.empty_like(grouped).scatter_(3, indices.long(), grouped)
    return unsorted.flatten(2)[..., : grad.size(2)].contiguous()


def _holds_no_nan(values: Tensor) -> bool:
    """Whether one sum can tell it; not asked of a GPU, which would have to be waited for."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return math.isfinite(values.sum())


def _out_of_order(first: Tensor, second: Tensor, descending: bool, no_nan: bool = False) -> Tensor:
    """Where a stable sort that puts NaN last exchanges two neighbours."""
    if no_nan:
        return first < second if descending else first > second
    kept = first >= second if descending else first <= second
    # kept is false when either is NaN; only a NaN in front of a number moves
    return kept.logical_not_().logical_and_(second == second)


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
        out = tuple(torch.empty_like(numbers) for numbers in pair)
    torch.bitwise_xor(first, difference, out=out[0].view(bits))
    torch.bitwise_xor(second, difference, out=out[1].view(bits))
    return out


def _groups(values: Tensor, group: int, fill: float) -> Tensor:
    """View (batch, channels, positions) as (batch, channels, groups, group), filled up."""
    missing = -values.size(2) % group
    if missing:
        values = torch.nn.functional.pad(values, (0, missing), value=fill)
    return values.unflatten(2, (-1, group))


def _sort_by_exchanges(grouped: Tensor, descending: bool) -> tuple[Tensor, Tensor]:
    """Odd-even transposition sort: only neighbours are exchanged, so it is stable."""
    group = grouped.size(3)
    columns = list(grouped.unbind(3))
    indices = [torch.full_like(columns[0], k, dtype=torch.uint8) for k in range(group)]
    for round_ in range(group):
        for k in range(round_ % 2, group - 1, 2):
            swap = _out_of_order(columns[k], columns[k + 1], descending)
            for lane in (columns, indices):
                lane[k : k + 2] = _exchange((lane[k], lane[k + 1]), swap)
    return torch.stack(columns, dim=3), torch.stack(indices, dim=3)


def _smallest_integer(count: int) -> torch.dtype:
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if count - 1 <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64
