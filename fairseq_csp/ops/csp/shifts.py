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
    shifts = shift_tuple(length, channels, layer, num_layers, shift, group_size)
    return torch.tensor(shifts, dtype=torch.int64)


@lru_cache(maxsize=65536)
def shift_tuple(
    length: int, channels: int, layer: int, num_layers: int, shift: str, group_size: int | str
) -> tuple[int, ...]:
    """Return what :func:`channel_shifts` returns as Python integers, without its checks."""
    if shift == "exponential":
        total = num_layers * channels
        # python's own double-precision power: vectorised ones may differ in the last bit
        shifts = [math.ceil(length ** ((layer * channels + c) / total)) for c in range(channels)]
    elif shift == "linear" and group_size != FULL:
        shifts = [group_size * max(c - 1, 0) for c in range(channels)]
    else:
        shifts = [0] * channels
    return tuple(number % length for number in shifts)
