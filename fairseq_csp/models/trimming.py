"""Which rows of a padded batch to encode together, so that little work is done on padding."""

from collections.abc import Sequence

# measured on 2 CPU cores: what one more pass through the encoder costs, in positions
PASS_COST = 600


def trimmed_parts(lengths: Sequence[int]) -> list[list[int]]:
    """Split a batch into parts of similar length, each to be trimmed to its longest row.

    The cost of a part is its rows times its longest row, and ``PASS_COST`` for the pass itself; the
    sum over the parts is the least there is.

    Args:
        lengths: valid positions of each row.

    Returns:
        Indices of the rows of each part, by falling length.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    # best[k]: least cost of the first k rows by falling length; cut[k]: where its last part begins
    best, cut = [0], [0]
    for end in range(1, len(order) + 1):
        cost, begin = min(
            (best[begin] + (end - begin) * lengths[order[begin]] + PASS_COST, begin)
            for begin in range(end)
        )
        best.append(cost)
        cut.append(begin)
    parts = []
    end = len(order)
    while end > 0:
        parts.append(order[cut[end] : end])
        end = cut[end]
    return parts[::-1]
