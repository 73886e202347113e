"""The operator as PyTorch sees it: its implementations, its shapes and its gradient.

``torch.library`` operators on tensors alone, so that a compiler need not look inside and other
lengths are no other program.
"""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from fairseq_csp.ops.csp import eager, native
from fairseq_csp.ops.csp.layout import contiguous
from fairseq_csp.ops.csp.shifts import shift_rows
from fairseq_csp.ops.kernels import implementation

# larger ones go by the reference
LARGEST_TRITON_GROUP = 2


@torch.library.custom_op("fairseq_csp::csp_shifts", mutates_args=())
def csp_shifts(
    lengths: Tensor,
    positions: int,
    channels: int,
    layer: int,
    num_layers: int,
    shift: str,
    group: int,
) -> Tensor:
    """Return the shift of each channel of each sequence.

    Args:
        lengths: (batch,) int64, valid positions of each sequence.
        positions: positions of every sequence, padding included.
        channels: number of channels.
        layer: index of the layer, from 0.
        num_layers: number of layers.
        shift: name of the strategy.
        group: what ``linear`` multiplies by.

    Returns:
        (batch, channels) int32, each below its sequence's length (0 for none).

    Raises:
        ValueError: on a CPU, a length is not from 0 to ``positions``.
    """
    return shift_rows(lengths, positions, channels, layer, num_layers, shift, group)


@csp_shifts.register_fake
def _(
    lengths: Tensor,
    positions: int,
    channels: int,
    layer: int,
    num_layers: int,
    shift: str,
    group: int,
) -> Tensor:
    return lengths.new_empty(lengths.size(0), channels, dtype=torch.int32)


@torch.library.custom_op("fairseq_csp::csp_permute", mutates_args=())
def csp_permute(
    values: Tensor,
    lengths: Tensor | None,
    shifts: Tensor,
    group: int,
    shift_first: bool,
    descending: bool,
) -> tuple[Tensor, Tensor]:
    """Shift and sort each channel of each sequence.

    Args:
        values: (batch, channels, positions), any floating dtype, any strides; not empty.
        lengths: (batch,) int64, valid positions of each sequence; None: all. Where there are more
            than rows, those of sequences that lie end to end in the one row and fill it, which the
            kernels in C++ take.
        shifts: (sequences, channels) int32, or (1, channels) where all lengths are one.
        group: positions in a sorted group, at most all.
        shift_first: whether the shift comes before the sort.
        descending: sort from the largest to the smallest.

    Returns:
        The permuted values, contiguous and 0 beyond a sequence's length, and what
        :func:`csp_restore` needs to undo the sort, in a form of the implementation's own.
    """
    values = contiguous(values)
    permute = _kernels(values, group).permute
    return permute(values, lengths, shifts, group, shift_first, descending)


@csp_permute.register_fake
def _(
    values: Tensor,
    lengths: Tensor | None,
    shifts: Tensor,
    group: int,
    shift_first: bool,
    descending: bool,
) -> tuple[Tensor, Tensor]:
    return values.new_empty(values.shape), _kernels(values, group).empty_kept(
        values, group, lengths
    )


@torch.library.custom_op("fairseq_csp::csp_restore", mutates_args=())
def csp_restore(
    grad: Tensor,
    lengths: Tensor | None,
    shifts: Tensor,
    kept: Tensor,
    group: int,
    shift_first: bool,
) -> Tensor:
    """Undo :func:`csp_permute`, which is its backward pass.

    Args:
        grad: (batch, channels, positions), any floating dtype, any strides.
        lengths: as given to :func:`csp_permute`.
        shifts: as given to it.
        kept: what it returned beside the values.
        group: as given to it.
        shift_first: as given to it.

    Returns:
        (batch, channels, positions), contiguous, 0 beyond a sequence's length.
    """
    grad = contiguous(grad)
    return _kernels(grad, group).restore(grad, lengths, shifts, kept, group, shift_first)


@csp_restore.register_fake
def _(
    grad: Tensor,
    lengths: Tensor | None,
    shifts: Tensor,
    kept: Tensor,
    group: int,
    shift_first: bool,
) -> Tensor:
    return grad.new_empty(grad.shape)


def _kernels(values: Tensor, group: int) -> ModuleType:
    """Return the implementation, a module like :mod:`fairseq_csp.ops.csp.eager`."""
    name = implementation(values.device)
    if name == "native" and group <= native.LARGEST_GROUP:
        return native
    if name == "triton" and group <= LARGEST_TRITON_GROUP:
        # there where it is installed
        return import_module("fairseq_csp.ops.csp.triton_kernels")
    return eager


def _keep(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    values, lengths, shifts, group, shift_first, _ = inputs
    ctx.group, ctx.shift_first = group, shift_first
    ctx.positions_first = values.stride(1) == 1 < values.stride(2)
    ctx.save_for_backward(lengths, shifts, output[1])


def _backward(ctx: FunctionCtx, grad: Tensor, _: Tensor) -> Sequence[Tensor | None]:
    lengths, shifts, kept = ctx.saved_tensors
    grad = csp_restore(grad, lengths, shifts, kept, ctx.group, ctx.shift_first)
    if ctx.positions_first:
        # as the values lie in memory, so that nothing copies it again to add it up
        grad = contiguous(grad.transpose(1, 2)).transpose(1, 2)
    return grad, *(None,) * 5


csp_permute.register_autograd(_backward, setup_context=_keep)
