"""Local attention, Longformer and BigBird against masks written down position by position."""

import math

import pytest
import torch

from fairseq_csp.errors import UserError
from fairseq_csp.modules.standalone import build_attention
from tests.mixers.rows import assert_equal_to_formula, make, rows_of

OPTIONS = {
    "window": {"window": 2},
    "window-1": {"window": 1},
    "global": {"window": 2, "global": 3},
    "random": {"window": 2, "random": 2},
    "all": {"window": 3, "global": 1, "random": 3},
    "window-of-a-row": {"window": 12, "global": 1, "random": 1},
    "window-beyond-a-row": {"window": 40, "global": 2, "random": 1},
    "global-beyond-a-row": {"window": 1, "global": 40},
}
NAMES = {"local": (25, 0, 0), "longformer": (256, 1, 0), "bigbird": (64, 2, 3)}


def pattern(attention, n):
    """Which keys each query sees, from the definition."""
    options = attention.options
    window, first, random = options.window, options.global_, options.random
    seen = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        for j in range(n):
            blocks = []
            if random:
                drawn = attention.random_blocks[i // window].tolist()
                blocks = [block % math.ceil(n / window) for block in drawn]
            seen[i, j] = abs(i - j) <= window or min(i, j) < first or j // window in blocks
    return seen


@pytest.mark.parametrize("bias", [None, "simple", "rotary"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_pattern(options, bias, monkeypatch):
    monkeypatch.setattr("fairseq_csp.modules.attention._pattern.SMALLEST_BLOCK", 4)

    def formula(q, k, v, b, attention, head):
        scores = q @ k.T / math.sqrt(q.size(1)) + b
        hidden = ~pattern(attention, len(q))
        return scores.masked_fill(hidden, -torch.inf).softmax(1) @ v

    options = {"global": 0, "random": 0} | options
    assert_equal_to_formula(
        "bigbird", formula, bias=bias, tolerance=1e-6 if bias == "rotary" else 1e-12, **options
    )


@pytest.mark.parametrize("name", NAMES)
def test_defaults(name):
    options = build_attention(name, value_dim=4, max_positions=200).options
    assert (options.window, options.global_, options.random) == NAMES[name]


@pytest.mark.parametrize("options", [{"window": 8}, {"window": 1, "global": 9}], ids=str)
def test_everything_seen_is_softmax(options):
    values, queries, keys = rows_of(9, [6, 4, 4], rows=2)
    lengths = torch.tensor([9, 5])
    found, expected = (
        build_attention(name, value_dim=6, query_dim=4, heads=2, **more).double()(
            values, lengths, queries, keys
        )
        for name, more in (("local", options), ("softmax", {}))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_nothing_comes_from_outside_the_pattern():
    attention = make(
        "bigbird", value_dim=3, query_dim=4, window=2, max_positions=40, **{"global": 1}
    )
    values, queries, keys = (x.requires_grad_() for x in rows_of(40, [3, 4, 4]))
    module = build_attention(
        "bigbird", value_dim=3, query_dim=4, window=2, max_positions=40, **{"global": 1}
    ).double()
    assert module.random_blocks.equal(attention.random_blocks)
    out, seen = module(values, None, queries, keys), pattern(attention, 40)
    assert 0.1 < seen.float().mean() < 0.5
    for i in range(0, 40, 3):
        grads = torch.autograd.grad(out[0, i].sum(), (values, keys), retain_graph=True)
        for grad in grads:
            assert grad[0].ne(0).any(1).equal(seen[i])


def test_shifted_rows_give_shifted_outputs():
    module = build_attention("local", value_dim=3, query_dim=4, window=3).double()
    inputs = rows_of(60, [3, 4, 4])
    whole = module(inputs[0], None, *inputs[1:])
    later = module(*(x[:, 5:] if x is not None else None for x in (inputs[0], None, *inputs[1:])))
    torch.testing.assert_close(later[:, 3:], whole[:, 8:], rtol=0, atol=1e-12)


def test_drawn_blocks():
    """By the layer, not by the seed; for all blocks of P positions; saved."""
    first, again, other = (
        make("bigbird", value_dim=4, query_dim=4, layer=layer, num_layers=2, max_positions=1000)
        for layer in (0, 0, 1)
    )
    assert first.random_blocks.shape == (16, 3)
    assert first.random_blocks.equal(again.random_blocks)
    assert not first.random_blocks.equal(other.random_blocks)
    # each of few blocks is drawn about as often
    many = make("bigbird", value_dim=4, query_dim=4, window=1, max_positions=3000)
    counts = (many.random_blocks % 3).flatten().bincount()
    assert counts.min() > 0.9 * counts.max()
    assert "random_blocks" in first.state_dict()


def test_in_blocks_of_rows(monkeypatch):
    options = {"window": 2, "global": 1, "random": 2, "max_positions": 12}
    module = build_attention("bigbird", value_dim=6, query_dim=4, heads=2, **options).double()
    inputs = [x.requires_grad_() for x in rows_of(12, [6, 4, 4], rows=3)]
    lengths = torch.tensor([12, 7, 3])
    whole = module(inputs[0], lengths, *inputs[1:])
    expected = torch.autograd.grad(whole.square().sum(), inputs)
    monkeypatch.setattr("fairseq_csp.modules.attention._scores.MOST_SCORES", 200)
    blocks = module(inputs[0], lengths, *inputs[1:])
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(torch.autograd.grad(blocks.square().sum(), inputs), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("option", "value", "least"), [("window", 0, 1), ("global", -1, 0), ("random", -2, 0)]
)
def test_bad_numbers(name, option, value, least):
    message = f"--{name}-{option} is {value}; it must be at least {least}"
    with pytest.raises(UserError, match=message):
        build_attention(name, value_dim=4, max_positions=9, **{option: value})


def test_random_blocks_need_a_reach():
    with pytest.raises(UserError, match="bigbird needs max_positions"):
        build_attention("bigbird", value_dim=4)
    module = build_attention("bigbird", value_dim=4, max_positions=9, window=2)
    x = torch.zeros(1, 10, 4)
    with pytest.raises(UserError, match="10 positions, but bigbird's pattern reaches only 9"):
        module(x, None, x, x)
