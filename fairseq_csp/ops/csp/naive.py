"""The operator as the paper states it: an index for each number, a general sort for each group.

What tests compare the fast forms with and benchmarks measure them against. Autograd gives the
gradient.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def permute_naive(
    values: Tensor,
    lengths: Sequence[int] | None = None,
    *,
    layer: int = 0,
    num_layers: int = 1,
    shift: str = "exponential",
    group_size: int | str = 2,
    order: str = "shift_sort",
    descending: bool = False,
) -> Tensor:
    """Permute the valid positions of every sequence and channel.

    The arguments are those of :func:`fairseq_csp.ops.csp.channel_wise_sample_permutation`, and are
    not checked.

    Args:
        values: (batch, positions, channels), any floating dtype.
        lengths: valid positions of each sequence; all are when None.
        layer: index of this layer, from 0.
        num_layers: number of layers.
        shift: ``exponential``, ``linear`` or ``none``.
        group_size: positions in a sorted group, or ``"full"``.
        order: ``shift_sort`` or ``sort_shift``.
        descending: sort from the largest to the smallest; NaN is last either way.

    Returns:
        (batch, positions, channels), the dtype of ``values``, 0 beyond a sequence's length.
    """
    options = (layer, num_layers, shift, group_size, order, descending)
    positions = values.size(1)
    if lengths is None or all(n == positions for n in lengths):
        return _permute(values, *options)
    permuted = [_permute(row[None, :n], *options) for row, n in zip(values, lengths, strict=True)]
    padded = [torch.nn.functional.pad(row, (0, 0, 0, positions - row.size(1))) for row in permuted]
    return torch.cat(padded)


def _permute(
    values: Tensor,
    layer: int,
    num_layers: int,
    shift: str,
    group_size: int | str,
    order: str,
    descending: bool,
) -> Tensor:
    batch, positions, channels = values.shape
    shifts = _shifts(positions, channels, layer, num_layers, shift, group_size)
    group = positions if isinstance(group_size, str) else min(group_size, positions)
    if order == "sort_shift":
        values = _sort(values, group, descending)
    position = torch.arange(positions, device=values.device)[:, None]
    index = (position - torch.tensor(shifts, device=values.device)) % positions
    values = torch.gather(values, 1, index.repeat(batch, 1, 1))
    return _sort(values, group, descending) if order == "shift_sort" else values


def _shifts(
    positions: int,
    channels: int,
    layer: int,
    num_layers: int,
    shift: str,
    group_size: int | str,
) -> list[int]:
    if shift == "exponential":
        exponents = [(layer * channels + c) / (num_layers * channels) for c in range(channels)]
        return [math.ceil(positions**exponent) % positions for exponent in exponents]
    if shift == "linear" and not isinstance(group_size, str):
        return [0] + [group_size * (c - 1) % positions for c in range(1, channels)]
    return [0] * channels


def _sort(values: Tensor, group: int, descending: bool) -> Tensor:
    if descending:
        # NaN last and equal numbers in their order, as in an ascending sort
        return -_sort(-values, group, descending=False)
    even = values.size(1) // group * group
    whole = values[:, :even].unflatten(1, (-1, group)).sort(dim=2, stable=True).values.flatten(1, 2)
    if even == values.size(1):
        return whole
    return torch.cat([whole, values[:, even:].sort(dim=1, stable=True).values], dim=1)
