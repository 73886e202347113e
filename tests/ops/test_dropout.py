"""Dropout's rate, scale, gradient and seed."""

import pytest
import torch

from fairseq_csp.ops.dropout import draw_seed, drop_by_seed, dropout, keep_factors

pytestmark = pytest.mark.usefixtures("every_implementation")


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1001, 1003), (7, 11, 13009), (1001, 501, 2)], ids=str)
def test_rate_and_scale(p, shape):
    torch.manual_seed(0)
    x = torch.ones(shape)
    y = dropout(x, p, training=True)
    # five standard deviations of the rate
    assert abs((y == 0).double().mean() - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    assert y.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-3)
    assert y.mean() == pytest.approx(1, abs=0.02)
    # no pattern from drawing several numbers at once, nor from the order of rows
    for lag in (*range(1, 9), 32, 64, shape[-1]):
        a, b = (y.flatten()[:-lag] == 0), (y.flatten()[lag:] == 0)
        assert (a & b).double().mean() == pytest.approx(p * p, abs=0.003)


def test_gradient_goes_where_the_values_went():
    for positions in (3, 64, 200):
        x = torch.randn(5, 7, positions).requires_grad_()
        y = dropout(x, 0.3, training=True)
        y.sum().backward()
        assert torch.equal(x.grad == 0, y == 0)
        assert torch.allclose(x.grad * x, y)


def test_infinities_are_dropped():
    y = dropout(torch.full((1, 1, 100), torch.inf), 0.5, training=True)
    assert set(y.flatten().tolist()) == {0, torch.inf}


def test_seed_decides():
    x = torch.ones(99)
    torch.manual_seed(1)
    first = dropout(x, 0.5, training=True)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5, training=True), first)
    assert not torch.equal(dropout(x, 0.5, training=True), first)


def test_nothing_or_all():
    x = torch.randn(10)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0, training=True) is x
    assert (dropout(x, 1, training=True) == 0).all()
    with pytest.raises(ValueError, match=r"is 1\.5"):
        dropout(x, 1.5, training=True)


@pytest.mark.parametrize("p", [1e-5, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 2, 64), (3, 4, 200)], ids=str)
def test_drawn_again_from_a_seed(p, shape):
    """The hash is the same in every implementation."""
    seed = draw_seed()
    x = torch.randn(shape)
    factors = keep_factors(shape, p, seed, x.device)
    expected = torch.where(factors == 0, 0, x * factors)
    assert torch.equal(drop_by_seed(x, p, seed), expected)
    assert torch.equal(drop_by_seed(x.double(), p, seed) == 0, expected == 0)
