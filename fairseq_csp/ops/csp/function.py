"""The public function, its form in the layout of the layers, and its attention map."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq_csp.ops.csp.native import LARGEST_GROUP
from fairseq_csp.ops.csp.operators import csp_permute, csp_shifts
from fairseq_csp.ops.csp.options import FULL, ORDERS, check_layer, check_options, sequence_lengths


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
    """Permute the valid positions of every sequence and channel.

    Every channel of the output holds exactly the channel's valid inputs, in another order. The
    gradient is the inverse permutation of the incoming one.

    Args:
        values: (batch, positions, channels), any floating dtype, any strides; each of the three
            may be 0.
        lengths: (batch,) number of valid positions of each sequence, at its start; all positions
            are valid when None. A tensor on a GPU is copied to the host.
        layer: index of this layer, from 0; with ``num_layers`` it sets the exponential shifts.
        num_layers: number of layers the exponential shifts are spread over.
        shift: ``exponential``, ``linear`` or ``none``, see
            :func:`fairseq_csp.ops.csp.channel_shifts`.
        group_size: positions in a sorted group, or ``"full"`` for the whole sequence.
        order: ``shift_sort`` or ``sort_shift``.
        descending: sort from the largest to the smallest. NaN counts as last either way.

    Returns:
        A tensor of the shape and dtype of ``values``; positions beyond a sequence's length are 0.

    Raises:
        ValueError: an option is unknown, or a length is not a whole number from 1 to the number of
            positions.
    """
    if values.dim() != 3 or not values.is_floating_point():
        raise ValueError(
            "values must be a floating tensor of shape (batch, positions, channels), got "
            f"{values.dtype} of shape {tuple(values.shape)}"
        )
    if lengths is not None and not torch.compiler.is_compiling():
        lengths = sequence_lengths(lengths, values.size(0), values.size(1))
    return permute_channels(
        values.transpose(1, 2),
        lengths,
        layer=layer,
        num_layers=num_layers,
        shift=shift,
        group_size=group_size,
        order=order,
        descending=descending,
    ).transpose(1, 2)


def permute_channels(
    values: Tensor,
    lengths: Tensor | Sequence[int] | None,
    *,
    layer: int,
    num_layers: int,
    shift: str,
    group_size: int | str,
    order: str,
    descending: bool,
) -> Tensor:
    """Permute as :func:`channel_wise_sample_permutation` does, in the layers' layout.

    Args:
        values: (batch, channels, positions), any floating dtype.
        lengths: (batch,) valid positions of each sequence, integers up to the positions, which are
            not checked on a GPU; 0 is allowed here (an empty chunk). All are valid when None. Of
            sequences that lie end to end in one row, see :func:`takes_packed`, those of each.
        layer: index of this layer, from 0.
        num_layers: number of layers.
        shift: ``exponential``, ``linear`` or ``none``.
        group_size: positions in a sorted group, or ``"full"``.
        order: ``shift_sort`` or ``sort_shift``.
        descending: sort from the largest to the smallest.

    Returns:
        (batch, channels, positions), contiguous, the dtype of ``values``.

    Raises:
        ValueError: an option is unknown.
    """
    check_options(shift, group_size, order)
    check_layer(layer, num_layers)
    if values.numel() == 0:
        return values.clone()
    _, channels, positions = values.shape
    if lengths is not None and not isinstance(lengths, Tensor):
        full = all(length == positions for length in lengths)
        lengths = None if full else torch.tensor(lengths)
    if lengths is not None:
        lengths = lengths.to(values.device, torch.int64, non_blocking=True)
    # one sequence stands for all where none is padded
    counts = torch.full((1,), positions, device=values.device) if lengths is None else lengths
    group = 0 if group_size == FULL else int(group_size)
    shifts = csp_shifts(counts, positions, channels, layer, num_layers, shift, group)
    group = min(group or positions, positions)
    out, _ = csp_permute(values, lengths, shifts, group, order == ORDERS[0], descending)
    return out


def takes_packed(group_size: int | str) -> bool:
    """Whether :func:`permute_channels` takes sequences end to end, where kernels are native.

    Args:
        group_size: positions in a sorted group, or ``"full"``.
    """
    return group_size != FULL and int(group_size) <= LARGEST_GROUP


def permutation_matrix(
    values: Tensor, lengths: Tensor | Sequence[int] | None = None, **options: Any
) -> Tensor:
    """Return the attention map that the operator applies to each channel.

    Args:
        values: (batch, positions, channels), any floating dtype.
        lengths: (batch,) number of valid positions of each sequence; all when None.
        **options: the others of :func:`channel_wise_sample_permutation`.

    Returns:
        (batch, channels, positions, positions), the dtype of ``values``: entry ``[b, c, i, j]`` is
        1 where position i of the output takes position j of the input, else 0. Rows and columns
        beyond the sequence's length are 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    positions = values.size(1)
    source = values.detach().double().requires_grad_()
    with torch.enable_grad():
        permuted = channel_wise_sample_permutation(source, lengths, **options)
    # the backward pass carries each output's position (from 1) to the input it was taken from
    numbers = torch.arange(1.0, positions + 1, dtype=torch.double, device=values.device)
    (target,) = torch.autograd.grad(permuted, source, numbers[:, None].expand_as(permuted))
    target = target.transpose(1, 2).unsqueeze(2)
    return (target == numbers[:, None]).to(values.dtype)
