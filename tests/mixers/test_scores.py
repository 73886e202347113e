"""Entries that weigh every pair of positions, against loops over rows, queries and keys."""

import math

import pytest
import torch

from fairseq_csp.errors import UserError
from fairseq_csp.modules.standalone import build_attention
from tests.mixers.rows import assert_equal_to_formula, rows_of


@pytest.mark.parametrize("bias", [None, "simple", "rotary"])
def test_sigmoid(bias):
    def formula(q, k, v, b, attention, head):
        n = len(q)
        return torch.sigmoid(q @ k.T / math.sqrt(q.size(1)) + b - math.log(n)) @ v

    assert_equal_to_formula("sigmoid", formula, bias=bias)


def test_sigmoid_of_no_scores():
    """With all scores 0 and values 1 the output is n / (n + 1)."""
    module = build_attention("sigmoid", value_dim=4, query_dim=2)
    zeros, ones = torch.zeros(2, 7, 2), torch.ones(2, 7, 4)
    out = module(ones, torch.tensor([7, 3]), zeros, zeros)
    torch.testing.assert_close(out[0], torch.full((7, 4), 7 / 8))
    torch.testing.assert_close(out[1, :3], torch.full((3, 4), 3 / 4))


def test_sigmoid_weights():
    """They are between 0 and 1 and need not sum to 1; the order of keys does not matter."""
    module = build_attention("sigmoid", value_dim=9, query_dim=4).double()
    values, queries, keys = rows_of(9, [9, 4, 4])
    weights = module(torch.eye(9, dtype=torch.double)[None], None, queries, keys)
    assert weights.gt(0).all() and weights.lt(1).all()
    assert (weights.sum(2) - 1).abs().min() > 1e-3
    order = torch.randperm(9)
    found = module(values[:, order], None, queries, keys[:, order])
    torch.testing.assert_close(found, module(values, None, queries, keys))


@pytest.mark.parametrize("shift", ["log n", "nan", "", "inf"])
def test_sigmoid_shift_is_checked(shift):
    with pytest.raises(UserError, match="--sigmoid-shift is .*; it must be a number, or '-log n'"):
        build_attention("sigmoid", value_dim=4, shift=shift)
