"""The operator in C++ on a CPU (``csp.cpp``)."""

import torch
from torch import Tensor

# larger groups are sorted by torch.sort
LARGEST_GROUP = 8


def permute(
    values: Tensor,
    lengths: Tensor | None,
    shifts: Tensor,
    group: int,
    shift_first: bool,
    descending: bool,
) -> tuple[Tensor, Tensor]:
    """Shift and sort; as :func:`fairseq_csp.ops.csp.eager.permute`, with groups of up to 8."""
    kernel = torch.ops.fairseq_csp_native.csp_permute
    return kernel(values, lengths, shifts, group, shift_first, descending)


def restore(
    grad: Tensor,
    lengths: Tensor | None,
    shifts: Tensor,
    kept: Tensor,
    group: int,
    shift_first: bool,
) -> Tensor:
    """Undo :func:`permute`; as :func:`fairseq_csp.ops.csp.eager.restore`."""
    kernel = torch.ops.fairseq_csp_native.csp_restore
    return kernel(grad, lengths, shifts, kept, group, shift_first)


def empty_kept(values: Tensor, group: int) -> Tensor:
    """Return room for what undoes the sort of (batch, channels, positions).

    16 bits for 16 pairs, a byte a number for larger groups, nothing for groups of one.
    """
    batch, channels, positions = values.shape
    count = (positions + 31) // 32 * 2 if group == 2 else positions if group > 1 else 0
    return values.new_empty(batch, channels, count, dtype=torch.uint8)
