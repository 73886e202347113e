"""The operator in C++ on a CPU (``csp.cpp``)."""

from typing import Any

import torch
from torch import Tensor

# larger groups are sorted by torch.sort
LARGEST_GROUP = 8


def permute(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Shift and sort; as :func:`fairseq_csp.ops.csp.eager.permute`, with groups of up to 8."""
    return torch.ops.fairseq_csp_native.csp_permute(*arguments)


def restore(*arguments: Any) -> Tensor:
    """Undo :func:`permute`; as :func:`fairseq_csp.ops.csp.eager.restore`."""
    return torch.ops.fairseq_csp_native.csp_restore(*arguments)


def empty_kept(values: Tensor, group: int, lengths: Tensor | None) -> Tensor:
    """Return room for what undoes the sort of (batch, channels, positions).

    16 bits for 16 pairs, a byte a number for larger groups, nothing for groups of one. Sequences
    that lie end to end may each begin 16 bits.
    """
    batch, channels, positions = values.shape
    count = (positions + 31) // 32 * 2 if group == 2 else positions if group > 1 else 0
    if group == 2 and lengths is not None and lengths.size(0) > batch:
        count += 2 * lengths.size(0)
    return values.new_empty(batch, channels, count, dtype=torch.uint8)
