"""Means over cells of a row's own positions, for landmarks and agents."""

from collections.abc import Callable

import torch
from torch import Tensor

from fairseq_csp.modules.lengths import SequenceLengths

# from a row's number of positions n and a number of cells m: where each cell begins and ends
Cells = Callable[[int, int], list[tuple[int, int]]]


def disjoint_cells(n: int, m: int) -> list[tuple[int, int]]:
    """Return m segments of n >= m positions that follow one another, as equal as can be."""
    return [(t * n // m, (t + 1) * n // m) for t in range(m)]


def covering_cells(n: int, m: int) -> list[tuple[int, int]]:
    """Return m cells of n positions, none empty; they overlap where m does not divide n."""
    return [(t * n // m, -(-(t + 1) * n // m)) for t in range(m)]


def cell_means(x: Tensor, lengths: SequenceLengths, count: int, cells: Cells) -> Tensor:
    """Return the mean of each cell of each row.

    Args:
        x: (batch, channels, positions), float32 or wider, 0 at padded positions.
        lengths: valid positions of each row.
        count: number of cells.
        cells: where they are in a row.

    Returns:
        (batch, channels, count); 0 for a row without valid positions.
    """
    if lengths.full and lengths.positions and lengths.positions % count == 0:
        return x.unflatten(2, (count, -1)).mean(3)
    pooling = lengths.kept((cells, count), lambda: _poolings(lengths, count, cells))
    with torch.autocast(x.device.type, enabled=False):
        return torch.bmm(x, pooling.to(x.dtype))


def _poolings(lengths: SequenceLengths, count: int, cells: Cells) -> Tensor:
    """Return (batch, positions, count), float64, on the device."""
    maps = {n: _pooling(n, lengths.positions, count, cells) for n in set(lengths.host)}
    pooling = torch.stack([maps[n] for n in lengths.host])
    return pooling.to(lengths.device, non_blocking=True)


def _pooling(n: int, positions: int, count: int, cells: Cells) -> Tensor:
    """Return (positions, count): the weight of each position in each cell."""
    pooling = torch.zeros(positions, count, dtype=torch.float64)
    for t, (begin, end) in enumerate(cells(n, count) if n else ()):
        pooling[begin:end, t] = 1 / (end - begin)
    return pooling


def grid_means(x: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Return the means of side x side covering cells of an image, row by row.

    Args:
        x: (batch, channels, rows * columns).
        grid: rows and columns.
        side: cells along each axis.

    Returns:
        (batch, channels, side * side).
    """
    return torch.nn.functional.adaptive_avg_pool2d(x.unflatten(2, grid), side).flatten(2)
