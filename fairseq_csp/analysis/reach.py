"""How far one position's value can travel, layer by layer, under each shift strategy.

Between two layers linear maps mix the channels, so that what stands at a position in any channel
can stand there in all of them; where the group sort puts a value depends on the numbers, so that it
may land on every place of its group. The residual connection leaves it where it was. The moving
average of MEGA, which mixes positions too, is left out.
"""

from pathlib import Path

import numpy as np

from fairseq_csp.analysis.output import save
from fairseq_csp.ops.csp import FULL, SHIFTS, channel_shifts
from fairseq_csp.plots import load_pyplot


def reached(
    positions: int,
    channels: int,
    layers: int,
    shift: str,
    group_size: int | str = 2,
    order: str = "shift_sort",
    start: int = 0,
) -> np.ndarray:
    """Return which positions the value of one position can reach.

    Args:
        positions: length of the sequence.
        channels: channels of each layer.
        layers: number of layers.
        shift: ``exponential``, ``linear`` or ``none``.
        group_size: positions in a sorted group, or ``"full"``.
        order: ``shift_sort`` or ``sort_shift``.
        start: the position.

    Returns:
        (layers, positions) bool: what can be reached by the end of each layer.
    """
    group = positions if group_size == FULL else min(group_size, positions)
    here = np.zeros(positions, dtype=bool)
    here[start] = True
    after = []
    for layer in range(layers):
        steps = (
            channel_shifts(positions, channels, layer, layers, shift, group_size).unique().tolist()
        )
        if order == "shift_sort":
            moved = _anywhere_in_group(_shifted(here, steps), group)
        else:
            moved = _shifted(_anywhere_in_group(here, group), steps)
        here = here | moved
        after.append(here)
    return np.stack(after)


def farthest(here: np.ndarray, start: int) -> int:
    """Return the greatest circular distance of the positions (positions,) bool from ``start``."""
    distance = np.abs(np.flatnonzero(here) - start)
    return int(np.minimum(distance, len(here) - distance).max())


def draw(
    file: Path,
    positions: int,
    channels: int,
    layers: int,
    group_size: int | str = 2,
    order: str = "shift_sort",
) -> None:
    """Draw how many positions are reached, and how far off, by the end of each layer.

    Args:
        file: name of the picture (PNG); the numbers go beside it as CSV.
        positions: length of the sequence.
        channels: channels of each layer.
        layers: number of layers.
        group_size: positions in a sorted group, or ``"full"``.
        order: ``shift_sort`` or ``sort_shift``.

    Raises:
        UserError: matplotlib is not installed, or the picture cannot be written.
    """
    pyplot = load_pyplot()
    start = positions // 2
    figure, (count, distance) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    rows = []
    for shift, style in zip(SHIFTS, ("o-", "s--", "^:"), strict=True):
        after = reached(positions, channels, layers, shift, group_size, order, start)
        numbers = range(1, layers + 1)
        shares = [100 * here.mean() for here in after]
        reaches = [farthest(here, start) for here in after]
        count.plot(numbers, shares, style, label=shift)
        distance.plot(numbers, reaches, style, label=shift)
        rows += [
            [shift, number, int(here.sum()), f"{share:.4f}", reach]
            for number, here, share, reach in zip(numbers, after, shares, reaches, strict=True)
        ]
    title = f"{positions:,} positions, {channels} channels, groups of {group_size}, {order}"
    figure.suptitle(title, fontsize="medium")
    count.set(xlabel="layers", ylabel="positions reached (%)")
    distance.set(xlabel="layers", ylabel="farthest position reached (circular distance)")
    for panel in (count, distance):
        panel.grid(alpha=0.3)
    count.legend()
    head = ["shift", "layers", "positions_reached", "share_percent", "farthest"]
    save(figure, head, rows, file)
    pyplot.close(figure)


def _shifted(here: np.ndarray, steps: list[int]) -> np.ndarray:
    return np.logical_or.reduce([np.roll(here, step) for step in steps])


def _anywhere_in_group(here: np.ndarray, group: int) -> np.ndarray:
    filled = np.pad(here, (0, -len(here) % group)).reshape(-1, group)
    return filled.any(1).repeat(group)[: len(here)]
