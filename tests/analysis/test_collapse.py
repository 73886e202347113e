"""Residual norm and stable rank, of known matrices and of random layers."""

import pytest
import torch

from fairseq_csp.analysis.collapse import (
    MIXINGS,
    STACKS,
    layer_by_layer,
    residual_norm,
    stable_rank,
)

SIZES = {"positions": 32, "channels": 16, "depth": 6}


def test_residual_norm_and_stable_rank_of_known_matrices():
    same = torch.ones(5, 3, dtype=torch.double)
    assert residual_norm(same) == 0
    assert stable_rank(same) == pytest.approx(1)
    opposite = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    assert residual_norm(opposite) == pytest.approx(1)
    assert stable_rank(opposite) == pytest.approx(1)
    assert stable_rank(torch.eye(4)) == pytest.approx(4)


def test_no_row_is_nearer_than_the_mean():
    torch.manual_seed(0)
    x = torch.randn(20, 4) + 3
    for row in x.mean(0) + 0.1 * torch.randn(50, 4):
        assert (x - row).norm() / x.norm() >= residual_norm(x)


@pytest.mark.parametrize("stack", STACKS)
def test_softmax_makes_rows_alike_and_permutations_do_not(stack):
    last = {mixing: layer_by_layer(mixing, stack, 0, **SIZES)[-1][0] for mixing in MIXINGS}
    assert all(norm > 0.5 for mixing, norm in last.items() if mixing != "softmax")
    assert last["softmax"] < min(norm for mixing, norm in last.items() if mixing != "softmax")
    if stack == "attention only":
        assert last["softmax"] < 1e-9


def test_seeds_differ_and_repeat():
    first = layer_by_layer("csp", STACKS[1], 0, **SIZES)
    assert first == layer_by_layer("csp", STACKS[1], 0, **SIZES)
    assert first != layer_by_layer("csp", STACKS[1], 1, **SIZES)
    # all mixings start from the same input
    assert first[0] == layer_by_layer("softmax", STACKS[0], 0, **SIZES)[0]
