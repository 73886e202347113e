"""Reach, against the positions where the operator itself puts a value."""

import numpy as np
import pytest
import torch

from fairseq_csp.analysis.reach import farthest, reached
from fairseq_csp.ops.csp import ORDERS, SHIFTS, permutation_matrix

POSITIONS, CHANNELS, LAYERS, START = 13, 4, 3, 5


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("group_size", [2, 3, "full"])
@pytest.mark.parametrize("shift", SHIFTS)
def test_reach_is_where_the_operator_puts_a_value(shift, group_size, order):
    options = {"shift": shift, "group_size": group_size, "order": order}
    here = torch.zeros(POSITIONS, dtype=torch.bool)
    here[START] = True
    torch.manual_seed(0)
    after = reached(POSITIONS, CHANNELS, LAYERS, shift, group_size, order, START)
    for layer in range(LAYERS):
        # enough draws that every outcome of every sort occurs
        values = torch.randn(200, POSITIONS, CHANNELS)
        taken = permutation_matrix(values, layer=layer, num_layers=LAYERS, **options)
        moves = taken.bool().any(0).any(0)
        here = here | moves[:, here].any(1)
        assert np.array_equal(after[layer], here.numpy())


def test_farthest_is_measured_around_the_circle():
    here = np.zeros(10, dtype=bool)
    here[[2, 4, 9]] = True
    assert farthest(here, 2) == 3
