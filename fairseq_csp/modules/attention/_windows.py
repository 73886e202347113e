"""Rows and images divided into windows of positions, and attention of windows to windows."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention._base import AttentionContext
from fairseq_csp.modules.lengths import SequenceLengths


class Windows:
    """Which positions each window holds.

    Args:
        index: (batch or 1, windows, size) int64: positions, or ``positions`` where there is none.
        positions: positions of every row, padding included.

    Attributes:
        mask: (batch or 1, windows, size) bool: whether there is a position.
    """

    def __init__(self, index: Tensor, positions: int) -> None:
        self.index, self.positions = index, positions
        self.mask = index < positions

    def gather(self, x: Tensor) -> Tensor:
        """Return (batch, channels, windows, size) of x (batch, channels, positions), 0 for none."""
        index = self.index.flatten(1)[:, None].expand(*x.shape[:2], -1)
        return F.pad(x, (0, 1)).gather(2, index).unflatten(2, self.index.shape[1:])

    def scatter(self, x: Tensor) -> Tensor:
        """Undo :meth:`gather`; what stands where there is no position is left out."""
        index = self.index.flatten(1)[:, None].expand(*x.shape[:2], -1)
        out = x.new_zeros(*x.shape[:2], self.positions + 1)
        return out.scatter(2, index, x.flatten(2))[..., : self.positions]

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of each window, (batch, channels, windows); 0 for an empty one."""
        counts = self.mask.sum(2).clamp(min=1).to(x.dtype)
        return self.gather(x).sum(3) / counts[:, None]


def segments(lengths: SequenceLengths, bounds: Sequence[Sequence[int]]) -> Windows:
    """Return windows of consecutive positions.

    Args:
        lengths: valid positions of each row.
        bounds: of each row, where its windows begin and, last, where they end; as many for all.
    """
    edges = torch.tensor(bounds).to(lengths.device, non_blocking=True)
    first, end = edges[:, :-1, None], edges[:, 1:, None]
    size = max((b - a for row in bounds for a, b in zip(row, row[1:], strict=False)), default=0)
    index = first + torch.arange(size, device=lengths.device)
    return Windows(torch.where(index < end, index, lengths.positions), lengths.positions)


def equal_windows(lengths: SequenceLengths, size: int) -> Windows:
    """Return windows of ``size`` consecutive positions; the last of a row may have fewer."""

    def make() -> Windows:
        starts = range(0, lengths.positions + size, size)
        return segments(lengths, [[min(start, n) for start in starts] for n in lengths.host])

    return lengths.kept(("windows", size), make)


def tiles(grid: tuple[int, int], size: tuple[int, int], device: torch.device) -> Windows:
    """Return the tiles of an image in reading order.

    Args:
        grid: rows and columns of the image.
        size: rows and columns of a tile; they divide the grid.
        device: where to.
    """
    (rows, columns), (height, width) = grid, size
    numbers = torch.arange(rows * columns, device=device).view(
        rows // height, height, columns // width, width
    )
    return Windows(numbers.transpose(1, 2).reshape(1, -1, height * width), rows * columns)


def check_grid(context: AttentionContext, positions: int) -> None:
    """Check that a row is an image of the grid that a function was built for.

    Raises:
        UserError: it has another number of positions.
    """
    if context.grid is not None and positions != context.grid[0] * context.grid[1]:
        rows, columns = context.grid
        raise UserError(
            f"an image has {positions} positions, but the attention function was built for "
            f"{rows} x {columns}: give --max-positions the number of pixels"
        )


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return softmax attention over the last axes.

    Args:
        queries: (..., width, queries), any floating dtype.
        keys: (..., width, keys).
        values: (..., channels, keys).
        mask: (..., 1, keys) bool, which keys count; without any the output is 0.
        scale: of the scores.

    Returns:
        (..., channels, queries), the dtype of the values.
    """
    scores = queries.transpose(-1, -2) @ keys * scale
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    # not -inf: there may be no key that counts
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    weights = weights.masked_fill(~mask, 0).to(values.dtype)
    return values @ weights.transpose(-1, -2)
