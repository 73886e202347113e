"""How a padded batch is cut into buckets."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq_csp.models.length_buckets import PASS_COST, length_buckets


def cost(buckets, lengths):
    return sum(len(part) * max(lengths[row] for row in part) + PASS_COST for part in buckets)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=8))
def test_least_cost(lengths):
    buckets = length_buckets(lengths)
    assert sorted(row for part in buckets for row in part) == list(range(len(lengths)))
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    least = min(
        cost([rows[a:b] for a, b in zip((0, *cuts), (*cuts, len(rows)), strict=True)], lengths)
        for count in range(len(rows))
        for cuts in combinations(range(1, len(rows)), count)
    )
    assert cost(buckets, lengths) == least


@pytest.mark.parametrize("lengths", [[7], [9, 9, 9]])
def test_rows_of_one_length_stay_together(lengths):
    assert length_buckets(lengths) == [list(range(len(lengths)))]


def test_a_short_row_is_not_padded_to_a_long_one():
    assert length_buckets([10, 4000, 3990]) == [[1, 2], [0]]
