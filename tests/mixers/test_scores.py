"""Entries that weigh every pair of positions, against loops over rows, queries and keys."""

import math

import pytest
import torch

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention.urpe import bucket_of_distance
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


def by_distance(numbers, n):
    """Entry [i, j] is the number of distance j - i."""
    middle = len(numbers) // 2
    return torch.stack([numbers[middle - i : middle - i + n] for i in range(n)])


@pytest.mark.parametrize("bias", [None, "simple", "rotary"])
def test_urpe(bias):
    def formula(q, k, v, b, attention, head):
        n = len(q)
        if bias is None:
            b = by_distance(attention.bias[head], n)
        weights = (q @ k.T / math.sqrt(q.size(1)) + b).softmax(1)
        return (weights * by_distance(attention.factor[head], n)) @ v

    assert_equal_to_formula("urpe", formula, bias=bias)


def test_urpe_starts_as_softmax_with_a_bias():
    module = build_attention("urpe", value_dim=6, query_dim=4, heads=2, max_positions=9).double()
    assert module.factor.shape == module.bias.shape == (2, 17)
    assert module.factor.eq(1).all()
    assert 0.01 < module.bias.std() < 0.04
    values, queries, keys = rows_of(7, [6, 4, 4])
    for head in range(2):
        q, k, v = (x[0].chunk(2, dim=1)[head] for x in (queries, keys, values))
        b = by_distance(module.bias[head], 7)
        expected = (q @ k.T / math.sqrt(2) + b).softmax(1) @ v
        found = module(values, None, queries, keys)[0].chunk(2, dim=1)[head]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_urpe_without_scores_is_a_toeplitz_matrix():
    module = build_attention("urpe", value_dim=7, query_dim=2, max_positions=7).double()
    torch.nn.init.zeros_(module.bias)
    torch.nn.init.normal_(module.factor)
    zeros = torch.zeros(1, 7, 2, dtype=torch.double)
    weights = module(torch.eye(7, dtype=torch.double)[None], None, zeros, zeros)[0]
    torch.testing.assert_close(weights, by_distance(module.factor[0], 7) / 7)
    assert (weights.sum(1) - 1).abs().min() > 1e-3


def test_urpe_in_blocks_of_queries(monkeypatch):
    module = build_attention("urpe", value_dim=6, query_dim=4, heads=2, max_positions=9).double()
    torch.nn.init.normal_(module.factor)
    values, queries, keys = rows_of(9, [6, 4, 4], rows=2)
    whole = module(values, torch.tensor([9, 4]), queries, keys)
    expected = torch.autograd.grad(whole.square().sum(), [module.factor, module.bias])
    monkeypatch.setattr("fairseq_csp.modules.attention._scores.MOST_SCORES", 2 * 2 * 9 * 4)
    blocks = module(values, torch.tensor([9, 4]), queries, keys)
    torch.testing.assert_close(blocks, whole)
    found = torch.autograd.grad(blocks.square().sum(), [module.factor, module.bias])
    torch.testing.assert_close(found, expected)


def test_urpe_buckets():
    """Near distances have their own number, farther ones share, each sign for itself."""
    bucket = bucket_of_distance(33, 8)
    assert bucket.tolist() == [16 - b for b in bucket.tolist()[::-1]]
    assert bucket[32:].tolist()[:6] == [8, 9, 10, 11, 12, 13]
    assert bucket[32:].diff().ge(0).all()
    assert bucket.unique().tolist() == [*range(17)]
    module = build_attention("urpe", value_dim=4, heads=2, max_positions=33, buckets=8)
    assert module.factor.shape == (2, 17)


def test_urpe_errors():
    with pytest.raises(UserError, match="--urpe-buckets is -1; it must be at least 0"):
        build_attention("urpe", value_dim=4, max_positions=9, buckets=-1)
    with pytest.raises(UserError, match="--urpe-buckets is 9; the 8 distances of 9 positions"):
        build_attention("urpe", value_dim=4, max_positions=9, buckets=9)
    with pytest.raises(UserError, match="urpe needs max_positions"):
        build_attention("urpe", value_dim=4)
    module = build_attention("urpe", value_dim=4, max_positions=3)
    x = torch.zeros(1, 4, 4)
    with pytest.raises(UserError, match="a row has 4 positions, but urpe's factor reaches only 3"):
        module(x, None, x, x)
