"""How far each channel is shifted."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from fairseq_csp.ops.csp.options import FULL, ORDERS, check_layer, check_options


def channel_shifts(
    length: int,
    channels: int,
    layer: int = 0,
    num_layers: int = 1,
    shift: str = "exponential",
    group_size: int | str = 2,
) -> Tensor:
    """Return the circular shift of every channel for a sequence of ``length`` positions.

    ``exponential``: ``ceil(length ** ((layer*channels + c) / (num_layers*channels)))``, which grows
    from 1 to almost ``length`` over all channels of all layers. ``linear``: 0 for channel 0, then
    ``group_size * (c - 1)``, and 0 for a group of the full sequence. ``none``: 0. All modulo
    ``length``.

    Args:
        length: positions of the sequence, at least 1.
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
    check_layer(layer, num_layers)
    if length < 1 or channels < 0:
        raise ValueError(
            f"length is {length} and channels is {channels}; they must be at least 1 and 0"
        )
    group = 0 if group_size == FULL else int(group_size)
    return _row(length, channels, layer, num_layers, shift, group).long()


def shift_rows(
    lengths: Tensor,
    positions: int,
    channels: int,
    layer: int,
    num_layers: int,
    shift: str,
    group: int,
) -> Tensor:
    """Return the shifts of sequences of different lengths, on the device of the lengths.

    Args:
        lengths: (batch,) int64, from 0 to ``positions``; a GPU is not asked for them.
        positions: the greatest length there may be.
        channels: number of channels.
        layer: index of the layer, from 0.
        num_layers: number of layers.
        shift: name of the strategy.
        group: positions in a sorted group, 0 for the full sequence; only ``linear`` uses it.

    Returns:
        (batch, channels) int32.

    Raises:
        ValueError: on a CPU, a length is out of its range.
    """
    options = (channels, layer, num_layers, shift, group)
    if lengths.device.type != "cpu":
        # a power of two, so that few tables serve batches of all lengths
        return _table(1 << (positions - 1).bit_length(), *options, lengths.device)[lengths]
    listed = lengths.tolist()
    if not all(0 <= length <= positions for length in listed):
        raise ValueError(f"lengths {listed} are not all from 0 to the {positions} positions")
    rows = [_row(length, *options) for length in listed]
    return torch.stack(rows) if rows else lengths.new_empty(0, channels, dtype=torch.int32)


@lru_cache(maxsize=64)
def _table(
    positions: int,
    channels: int,
    layer: int,
    num_layers: int,
    shift: str,
    group: int,
    device: torch.device,
) -> Tensor:
    """Return the shifts for each length up to ``positions``: (positions + 1, channels) int32."""
    options = (channels, layer, num_layers, shift, group)
    return torch.stack([_row(length, *options) for length in range(positions + 1)]).to(device)


@lru_cache(maxsize=65536)
def _row(length: int, channels: int, layer: int, num_layers: int, shift: str, group: int) -> Tensor:
    """Return the shifts for one length: (channels,) int32, 0 where there are no positions."""
    if shift == "exponential":
        total = num_layers * channels
        # python's own double-precision power: vectorised ones may differ in the last bit
        shifts = [math.ceil(length ** ((layer * channels + c) / total)) for c in range(channels)]
    elif shift == "linear":
        shifts = [group * max(c - 1, 0) for c in range(channels)]
    else:
        shifts = [0] * channels
    return torch.tensor([number % max(length, 1) for number in shifts], dtype=torch.int32)
