"""Agent attention against a naive loop over rows."""

import pytest
import torch

from fairseq_csp import build_attention
from fairseq_csp.errors import UserError


@pytest.mark.parametrize("conv", [True, False])
def test_text(conv):
    """By loops, agents that overlap and repeat included, with NaN at the padding."""
    torch.manual_seed(0)
    counts, heads, tokens = (11, 1, 4, 8), 2, 4
    mixer = build_attention(
        "agent", value_dim=6, query_dim=4, heads=heads, tokens=tokens, conv=conv
    ).double()
    v, q, k = (torch.randn(4, 12, width, dtype=torch.float64) for width in (6, 4, 4))
    for row, n in enumerate(counts):
        for x in (v, q, k):
            x[row, n:] = torch.nan
    out = mixer(v, torch.tensor(counts), q, k)
    for row, n in enumerate(counts):
        for head in range(heads):
            own, wide = slice(head * 3, head * 3 + 3), slice(head * 2, head * 2 + 2)
            queries, keys = q[row, :n, wide], k[row, :n, wide]
            agents = torch.stack(
                [
                    queries[t * n // tokens : -(-(t + 1) * n // tokens)].mean(0)
                    for t in range(tokens)
                ]
            )
            spread = (queries @ agents.T / 2**0.5).softmax(1)
            seen = (agents @ keys.T / 2**0.5).softmax(1)
            expected = spread @ seen @ v[row, :n, own]
            if conv:
                padded = torch.nn.functional.pad(v[row, :n, own], (0, 0, 1, 1))
                expected = expected + mixer.conv.bias[own]
                for tap in range(3):
                    expected = expected + mixer.conv.weight[own, 0, tap] * padded[tap : tap + n]
            torch.testing.assert_close(out[row, :n, own], expected, rtol=0, atol=1e-12)
        assert out[row, n:].eq(0).all()


@pytest.mark.parametrize("grid", [None, (3, 4)])
def test_constants_are_kept_and_weights_are_not_negative(grid):
    torch.manual_seed(0)
    mixer = build_attention(
        "agent", value_dim=12, query_dim=4, tokens=4, conv=False, grid=grid
    ).double()
    q, k = torch.randn(2, 1, 12, 4, dtype=torch.float64)
    weights = mixer(torch.eye(12, dtype=torch.float64)[None], None, q, k)
    assert weights.min() > 0
    torch.testing.assert_close(weights.sum(2), torch.ones(1, 12).double(), rtol=0, atol=1e-12)


def test_gradcheck():
    torch.manual_seed(0)
    v, q, k = torch.randn(3, 2, 5, 2, dtype=torch.float64, requires_grad=True).unbind()
    mixer = build_attention("agent", value_dim=2, tokens=3).double()
    lengths = torch.tensor([5, 2])
    assert torch.autograd.gradcheck(lambda *x: mixer(x[0], lengths, *x[1:]), (v, q, k))


def test_parameters():
    for grid, each, tokens in ((None, 4, 64), ((5, 5), 10, 49)):
        mixer = build_attention("agent", value_dim=7, grid=grid)
        assert sum(p.numel() for p in mixer.parameters()) == 7 * each
        assert mixer.tokens == tokens
    assert not list(build_attention("agent", value_dim=7, conv="off").parameters())


def test_bad_options():
    with pytest.raises(UserError, match="--agent-tokens is 0; it must be at least 1"):
        build_attention("agent", value_dim=2, tokens=0)
    with pytest.raises(UserError, match="--agent-tokens is 8; on images it must be a square"):
        build_attention("agent", value_dim=2, tokens=8, grid=(4, 4))
    mixer, x = build_attention("agent", value_dim=2, tokens=4, grid=(4, 4)), torch.randn(1, 15, 2)
    with pytest.raises(UserError, match=r"images of 4 x 4 positions; rows have \[15\]"):
        mixer(x, None, x, x)
