"""The operator's options and sequence lengths, and their checks."""

from collections.abc import Sequence
from numbers import Integral

import numpy as np
from torch import Tensor

SHIFTS = ("exponential", "linear", "none")
ORDERS = ("shift_sort", "sort_shift")
FULL = "full"


def check_options(shift: str, group_size: int | str, order: str) -> None:
    """Check the operator's options.

    Args:
        shift: name of the shift strategy.
        group_size: positions in a sorted group, or ``"full"``.
        order: which of shift and sort comes first.

    Raises:
        ValueError: one of them is unknown; the message lists what is valid.
    """
    if shift not in SHIFTS:
        raise ValueError(f"shift is {shift!r}; it must be one of {', '.join(SHIFTS)}")
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}; it must be one of {', '.join(ORDERS)}")
    if group_size != FULL and not (_is_integer(group_size) and int(group_size) >= 1):
        raise ValueError(f"group_size is {group_size!r}; it must be a positive integer or {FULL!r}")


def check_layer(layer: int, num_layers: int) -> None:
    """Check the index of a layer.

    Args:
        layer: index of the layer, from 0.
        num_layers: number of layers.

    Raises:
        ValueError: the layer is not one of them, or one of the two is no integer.
    """
    if not (_is_integer(layer) and _is_integer(num_layers) and 0 <= layer < num_layers):
        raise ValueError(
            f"layer is {layer!r} and num_layers is {num_layers!r}; layer must be an integer from 0 "
            "to num_layers - 1"
        )


def sequence_lengths(
    lengths: Tensor | np.ndarray | Sequence[int] | None, batch: int, positions: int
) -> tuple[int, ...]:
    """Check sequence lengths and bring them to the host.

    Args:
        lengths: (batch,) valid positions of each sequence, or None for all. Floating numbers, such
            as the sum of a mask, must be whole.
        batch: number of sequences.
        positions: positions of every sequence, padding included.

    Returns:
        One Python integer a sequence.

    Raises:
        ValueError: the number of lengths is wrong, or one is not a whole number from 1 to
            ``positions``.
    """
    if lengths is None:
        return (positions,) * batch
    array = isinstance(lengths, Tensor | np.ndarray)
    if array and lengths.ndim != 1:
        raise ValueError(
            f"lengths must be of shape ({batch},), one for each sequence, got "
            f"{tuple(lengths.shape)}"
        )
    listed = lengths.tolist() if array else list(lengths)
    if len(listed) != batch:
        raise ValueError(f"{len(listed)} lengths were given for {batch} sequences")
    for index, length in enumerate(listed):
        # also false for NaN
        if not (1 <= length <= positions and length == int(length)):
            raise ValueError(
                f"sequence {index} has length {length}; it must be a whole number from 1 to the "
                f"{positions} positions"
            )
    return tuple(map(int, listed))


def _is_integer(number: object) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)
