"""Working on few rows at a time where all at once would take too much memory."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fairseq_csp.modules.attention import _scores
from fairseq_csp.modules.lengths import SequenceLengths


def in_blocks_of_rows(
    function: Callable[..., Tensor], per_row: int, lengths: SequenceLengths, *tensors: Tensor
) -> Tensor:
    """Call a function that treats each row by itself, on as many rows at once as memory allows.

    Several blocks are computed again in the backward pass, so that one block's numbers at a time
    are kept.

    Args:
        function: called with lengths and tensors of some rows.
        per_row: numbers that the function keeps for a row.
        lengths: valid positions of each row.
        tensors: (batch, ...) each.

    Returns:
        What the function returns for all rows: (batch, ...).
    """
    batch = len(lengths.host)
    size = max(1, _scores.MOST_SCORES // per_row)
    if size >= batch:
        return function(lengths, *tensors)
    out = []
    for first in range(0, batch, size):
        rows = slice(first, first + size)
        some = SequenceLengths(
            lengths.host[rows],
            lengths.positions,
            lengths.device,
            partial(lengths_of, lengths, rows),
        )
        parts = (x[rows] for x in tensors)
        out.append(checkpoint(function, some, *parts, use_reentrant=False))
    return torch.cat(out)


def lengths_of(lengths: SequenceLengths, rows: slice | Tensor) -> Tensor:
    """Return some rows' lengths, on the device."""
    return lengths.tensor[rows]
