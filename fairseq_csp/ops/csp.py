"""Channel-wise sample permutation (CSP): shift every channel by its own step, sort small groups.

Source: "Towards Better Multi-head Attention via Channel-wise Sample Permutation",
arXiv 2410.10914, sections 3.1 and 3.2. Sorting the whole row without a shift is Sliceformer
(arXiv 2310.17683).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

SHIFTS = ("exponential", "linear", "none")
ORDERS = ("shift_sort", "sort_shift")
FULL = "full"
# measured on 2 CPU cores: above this size torch.sort is faster than compare-exchange rounds
LARGEST_NETWORK = 8
# most numbers that are permuted together on a CPU, which bounds the memory for temporary ones
BLOCK = 1 << 20
# positions that are transposed together
TRANSPOSED = 512
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def channel_wise_sample_permutation(
    values: Tensor,
    lengths: Tensor | Sequence[int] | None = None,
    *,
    layer: int = 0,
    num_layers: int = 1,
    shift: str = "exponential",
    group_size: int | str = 2,
    order: str = "shift_sort",
    descending: bool = False,
) -> Tensor:
    """Permute the valid positions of every row and channel.

    Every channel of the output holds exactly the channel's valid inputs, in another order. The
    gradient is the inverse permutation of the incoming one.

    Args:
        values: (batch, positions, channels), any floating dtype, any strides.
        lengths: (batch,) number of valid positions of each row, at the row's start; all positions
            are valid when None. A tensor on a GPU is copied to the host.
        layer: index of this layer, from 0; with ``num_layers`` it sets the exponential steps.
        num_layers: number of layers the exponential steps are spread over.
        shift: ``exponential``, ``linear`` or ``none``, see :func:`shift_steps`.
        group_size: positions in a sorted group, or ``"full"`` for the whole row.
        order: ``shift_sort`` or ``sort_shift``.
        descending: sort from the largest to the smallest. NaN counts as last either way.

    Returns:
        A tensor of the shape and dtype of ``values``; positions beyond a row's length are 0.

    Raises:
        ValueError: an option is unknown, or a length is not between 1 and the number of positions.
    """
    if values.dim() != 3 or not values.is_floating_point():
        raise ValueError(
            "values must be a floating tensor of shape (batch, positions, channels), got "
            f"{values.dtype} of shape {tuple(values.shape)}"
        )
    rows = row_lengths(lengths, values.size(0), values.size(1))
    return permute_channels(
        values.transpose(1, 2),
        rows,
        layer=layer,
        num_layers=num_layers,
        shift=shift,
        group_size=group_size,
        order=order,
        descending=descending,
    ).transpose(1, 2)


def permute_channels(
    values: Tensor,
    lengths: Sequence[int],
    *,
    layer: int,
    num_layers: int,
    shift: str,
    group_size: int | str,
    order: str,
    descending: bool,
) -> Tensor:
    """:func:`channel_wise_sample_permutation` in the layout (batch, channels, positions).

    Args:
        values: (batch, channels, positions), any floating dtype.
        lengths: valid positions of each row, on the host; 0 is allowed here (an empty chunk).
        layer: see :func:`channel_wise_sample_permutation`, as for all the other options.
        num_layers: see there.
        shift: see there.
        group_size: see there.
        order: see there.
        descending: see there.

    Returns:
        (batch, channels, positions), contiguous, the dtype of ``values``.

    Raises:
        ValueError: an option is unknown.
    """
    check_options(shift, group_size, order)
    steps = {
        n: _steps(max(n, 1), values.size(1), layer, num_layers, shift, group_size)
        for n in set(lengths)
    }
    return _Permute.apply(values, tuple(lengths), steps, group_size, order, descending)


def shift_steps(
    length: int,
    channels: int,
    layer: int = 0,
    num_layers: int = 1,
    shift: str = "exponential",
    group_size: int | str = 2,
) -> Tensor:
    """Return the circular shift of every channel for a row of ``length`` positions.

    ``exponential``: ``ceil(length ** ((layer*channels + c) / (num_layers*channels)))``, which grows
    from 1 to almost ``length`` over all channels of all layers. ``linear``: 0 for channel 0, then
    ``group_size * (c - 1)``, and 0 for a group of the full row. ``none``: 0. All modulo ``length``.

    Args:
        length: positions of the row, at least 1.
        channels: number of channels.
        layer: index of the layer, from 0.
        num_layers: number of layers.
        shift: name of the strategy.
        group_size: positions in a sorted group, or ``"full"``; only ``linear`` uses it.

    Returns:
        (channels,) int64, on the CPU.

    Raises:
        ValueError: an argument is out of its range.
    """
    check_options(shift, group_size, ORDERS[0])
    if length < 1 or channels < 1 or not 0 <= layer < num_layers:
        raise ValueError(
            f"shift_steps(length={length}, channels={channels}, layer={layer}, "
            f"num_layers={num_layers}): length and channels must be at least 1, "
            "and layer must be at least 0 and below num_layers"
        )
    return torch.tensor(_steps(length, channels, layer, num_layers, shift, group_size))


def permutation_matrix(
    values: Tensor, lengths: Tensor | Sequence[int] | None = None, **options: int | str | bool
) -> Tensor:
    """Return the attention map that the operator applies to each channel.

    Args:
        values: as for :func:`channel_wise_sample_permutation`.
        lengths: as there.
        **options: as there.

    Returns:
        (batch, channels, positions, positions), the dtype of ``values``: entry ``[b, c, i, j]`` is
        1 where position i of the output takes position j of the input, else 0. Rows and columns
        beyond the row's length are 0.

    Raises:
        ValueError: as there.
    """
    batch, positions, channels = values.shape
    source = values.detach().double().requires_grad_()
    with torch.enable_grad():
        permuted = channel_wise_sample_permutation(source, lengths, **options)
    # the backward pass carries each output's position (from 1) to the input it was taken from
    numbers = torch.arange(1.0, positions + 1, dtype=torch.double, device=values.device)
    (target,) = torch.autograd.grad(permuted, source, numbers[:, None].expand_as(permuted))
    target = target.transpose(1, 2).unsqueeze(2)
    return (target == numbers[:, None]).to(values.dtype)


def row_lengths(
    lengths: Tensor | Sequence[int] | None, batch: int, positions: int
) -> tuple[int, ...]:
    """Check row lengths and bring them to the host.

    Args:
        lengths: (batch,) valid positions of each row, or None for all.
        batch: number of rows.
        positions: positions of every row.

    Returns:
        One integer a row.

    Raises:
        ValueError: the number of lengths is wrong, or one is not between 1 and ``positions``.
    """
    if lengths is None:
        return (positions,) * batch
    listed = lengths.tolist() if isinstance(lengths, Tensor) else [int(n) for n in lengths]
    if len(listed) != batch:
        raise ValueError(f"{len(listed)} lengths were given for {batch} rows")
    for row, length in enumerate(listed):
        if not 1 <= length <= positions:
            raise ValueError(
                f"row {row} has length {length}; it must be between 1 and {positions} positions"
            )
    return tuple(listed)


def check_options(shift: str, group_size: int | str, order: str) -> None:
    """Check the operator's options.

    Args:
        shift: name of the shift strategy.
        group_size: positions in a group, or ``"full"``.
        order: which of shift and sort comes first.

    Raises:
        ValueError: one of them is unknown; the message lists what is valid.
    """
    if shift not in SHIFTS:
        raise ValueError(f"shift is {shift!r}; it must be one of {', '.join(SHIFTS)}")
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}; it must be one of {', '.join(ORDERS)}")
    if group_size != FULL and (
        isinstance(group_size, bool | str | float)
        or int(group_size) != group_size
        or group_size < 1
    ):
        raise ValueError(f"group_size is {group_size!r}; it must be a positive integer or {FULL!r}")


@lru_cache(maxsize=65536)
def _steps(
    length: int, channels: int, layer: int, num_layers: int, shift: str, group_size: int | str
) -> tuple[int, ...]:
    if shift == "exponential":
        total = num_layers * channels
        # python's own double-precision power: vectorised ones may differ in the last bit
        steps = [math.ceil(length ** ((layer * channels + c) / total)) for c in range(channels)]
    elif shift == "linear" and group_size != FULL:
        steps = [group_size * max(c - 1, 0) for c in range(channels)]
    else:
        steps = [0] * channels
    return tuple(step % length for step in steps)


@lru_cache(maxsize=65536)
def _on_device(steps: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(steps).to(device)


@dataclass(frozen=True)
class _Block:
    """Rows, channels and positions that are permuted together.

    Attributes:
        rows: which rows.
        channels: which channels.
        positions: valid positions of the longest row.
        lengths: those of each row, where they differ; None where all have ``positions``.
    """

    rows: slice
    channels: slice
    positions: int
    lengths: tuple[int, ...] | None = None

    def cut(self, values: Tensor) -> Tensor:
        """Return the block's part of (batch, channels, positions)."""
        return values[self.rows, self.channels, : self.positions]

    def fill(self, part: Tensor, number: float) -> Tensor:
        """Set what lies beyond its row's length."""
        if self.lengths is None:
            return part
        places = torch.arange(self.positions, device=part.device)
        return part.masked_fill(places >= self.counts(part.device), number)

    def counts(self, device: torch.device) -> Tensor:
        """Return (rows, 1, 1): the lengths."""
        return torch.tensor(self.lengths).to(device, non_blocking=True)[:, None, None]


def _blocks(values: Tensor, lengths: tuple[int, ...]) -> list[_Block]:
    """Divide (batch, channels, positions) into blocks.

    On a CPU the rows of a block have one length, so that nothing is done for padding. On a GPU,
    where a call costs more, all is one block.
    """
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return _one_block(values, lengths)
    batch, channels, positions = values.shape
    together = 1
    if all(n == positions for n in lengths):
        together = max(BLOCK // (channels * positions), 1)
    blocks = []
    for row in range(0, batch, together):
        if length := lengths[row]:
            width = max(BLOCK // length, 1)
            rows = slice(row, row + together)
            parts = [slice(first, first + width) for first in range(0, channels, width)]
            blocks += [_Block(rows, part, length) for part in parts]
    return blocks


def _one_block(values: Tensor, lengths: tuple[int, ...]) -> list[_Block]:
    batch, channels, _ = values.shape
    longest = max(lengths, default=0)
    same = all(n == longest for n in lengths)
    return [_Block(slice(batch), slice(channels), longest, None if same else lengths)]


class _Permute(torch.autograd.Function):
    """Shift and sort; of the sort only each output's place inside its group is saved."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        values: Tensor,
        lengths: tuple[int, ...],
        steps: dict[int, tuple[int, ...]],
        group_size: int | str,
        order: str,
        descending: bool,
    ) -> Tensor:
        ctx.blocks = _blocks(values, lengths)
        ctx.lengths, ctx.steps, ctx.order = lengths, steps, order
        ctx.positions_first = values.stride(1) == 1 < values.stride(2)
        saved = []

        def permute(part: Tensor, block: _Block, out: Tensor | None) -> Tensor:
            shift_first = order == "shift_sort"
            if shift_first:
                part = _shift(part, block, steps)
            # a NaN stays behind every valid value of its group
            part = block.fill(part, math.nan)
            part, places = _sort(part, group_size, descending, out if shift_first else None)
            saved.append(places)
            if not shift_first:
                part = _shift(part, block, steps, out=out)
            return block.fill(part, 0.0)

        out = _in_blocks(_side_by_side(values), lengths, ctx.blocks, permute)
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)

        def restore(part: Tensor, block: _Block, out: Tensor | None) -> Tensor:
            if ctx.order == "sort_shift":
                part = _shift(part, block, ctx.steps, back=True)
            part = _unsort(block.fill(part, 0.0), next(saved))
            if ctx.order == "shift_sort":
                part = _shift(part, block, ctx.steps, back=True, out=out)
            return block.fill(part, 0.0)

        grad = _in_blocks(_side_by_side(grad), ctx.lengths, ctx.blocks, restore)
        if ctx.positions_first:
            # as the values lie in memory, so that nothing copies it again to add it up
            grad = _side_by_side(grad.transpose(1, 2)).transpose(1, 2)
        return grad, *(None,) * 5


def _in_blocks(
    values: Tensor,
    lengths: tuple[int, ...],
    blocks: list[_Block],
    function: Callable[[Tensor, _Block, Tensor | None], Tensor],
) -> Tensor:
    """Apply a function to each block of (batch, channels, positions); 0 where there is none.

    Args:
        values: (batch, channels, positions), positions side by side in memory.
        lengths: valid positions of each row.
        blocks: the blocks.
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


def _side_by_side(values: Tensor) -> Tensor:
    """Return (batch, rows, columns) with the columns side by side in memory."""
    if values.stride(2) == 1:
        return values
    on_cpu = values.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and values.dtype == torch.float32 and values.transpose(1, 2).is_contiguous():
        return _shuffled(values.transpose(1, 2))
    out = values.new_empty(values.shape)
    # part by part: lines of memory are used again while they are in the cache
    parts = (tensor.split(TRANSPOSED, 2) for tensor in (values, out))
    for part, place in zip(*parts, strict=True):
        place.copy_(part)
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
    block: _Block,
    steps: dict[int, tuple[int, ...]],
    back: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Shift each channel of a block circularly inside its row's length, or back again.

    The result may be in ``out``.
    """
    chosen = [steps[n][block.channels] for n in block.lengths or (block.positions,)]
    most = max(map(max, chosen))
    if most == 0:
        return values
    table = torch.stack([_on_device(row, values.device) for row in chosen])
    if block.lengths is None:
        # a row with its end before it, or its beginning after it, holds each shift of itself as a
        # window: one window is copied for each row and channel, without an index for each number
        channels = torch.arange(values.size(1), device=values.device)
        if back:
            line, first = torch.cat([values, values[..., :most]], dim=2), table[0]
        else:
            line, first = torch.cat([values[..., -most:], values], dim=2), most - table[0]
        windows = line.unfold(2, block.positions, 1)
        if out is None:
            return windows[:, channels, first]
        return torch.ops.aten.index.Tensor_out(windows, [None, channels, first], out=out)
    places = torch.arange(block.positions, device=values.device)
    source = places + table.unsqueeze(2) if back else places - table.unsqueeze(2)
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
        ordered, places = _sort_by_exchanges(grouped, descending)
    else:
        keys = -grouped if descending else grouped
        places = keys.sort(dim=3, stable=True).indices
        ordered = grouped.gather(3, places)
        places = places.to(_smallest_integer(group))
    return ordered.flatten(2)[..., :positions].contiguous(), places


def _unsort(grad: Tensor, places: Tensor) -> Tensor:
    """Undo :func:`_sort`."""
    if places.dtype == torch.bool:
        return _swap_pairs(grad, places)
    grouped = _groups(grad, places.size(3), 0.0)
    # a plain write: within a group no two places are the same
    unsorted = torch.empty_like(grouped).scatter_(3, places.long(), grouped)
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
    places = [torch.full_like(columns[0], k, dtype=torch.uint8) for k in range(group)]
    for round_ in range(group):
        for k in range(round_ % 2, group - 1, 2):
            swap = _out_of_order(columns[k], columns[k + 1], descending)
            for lane in (columns, places):
                lane[k : k + 2] = _exchange((lane[k], lane[k + 1]), swap)
    return torch.stack(columns, dim=3), torch.stack(places, dim=3)


def _smallest_integer(count: int) -> torch.dtype:
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if count - 1 <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64
