"""How a padded batch is cut into parts."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq_csp.models.trimming import PASS_COST, trimmed_parts


def cost(parts, lengths):
    return sum(len(part) * max(lengths[row] for row in part) + PASS_COST for part in parts)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=8))
def test_least_cost(lengths):
    parts = trimmed_parts(lengths)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    least = min(
        cost([rows[a:b] for a, b in zip((0, *cuts), (*cuts, len(rows)), strict=True)], lengths)
        for count in range(len(rows))
        for cuts in combinations(range(1, len(rows)), count)
    )
    assert cost(parts, lengths) == least


@pytest.mark.parametrize("lengths", [[7], [9, 9, 9]])
def test_rows_of_one_length_stay_together(lengths):
    assert trimmed_parts(lengths) == [list(range(len(lengths)))]


def test_a_short_row_is_not_padded_to_a_long_one():
    assert trimmed_parts([10, 4000, 3990]) == [[1, 2], [0]]
