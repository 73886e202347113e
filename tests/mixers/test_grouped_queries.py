"""gqa, kdgqa, dgqa and sqa: heads by heads, and how query heads are dealt."""

import copy
import logging

import pytest
import torch

from fairseq_csp import build_attention
from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention._heads import allocate
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.transformer_layer import MultiHeadAttention
from tests.helpers.building import small
from tests.mixers.rows import make, rows_of

ROWS = (9, 1, 5)


def entry(name, heads=4, dim=24, **options):
    torch.manual_seed(1)
    return build_attention(name, value_dim=dim, heads=heads, **options).double()


def naive(entry, x, owners):
    """One row by a loop over the query heads; ``owners`` is the key head of each."""
    width = entry.head_dim
    q, k, v = (
        torch.nn.functional.linear(x, part.weight, part.bias).split(width, 1)
        for part in (entry.q_proj, entry.k_proj, entry.v_proj)
    )
    heads = [
        (q[head] @ k[owner].T / width**0.5).softmax(1) @ v[owner]
        for head, owner in enumerate(owners)
    ]
    return torch.nn.functional.linear(
        torch.cat(heads, 1), entry.out_proj.weight, entry.out_proj.bias
    )


def dealing(norms, heads, least=0):
    """The rule of arXiv 2408.08454 with Python's numbers."""
    low, high = min(norms), max(norms)
    shares = [(n - low) / (high - low) if high > low else 1.0 for n in norms]
    rest = heads - least * len(norms)
    alloc = [round(rest * share / sum(shares)) for share in shares]
    while sum(alloc) > rest:
        alloc[alloc.index(max(alloc))] -= 1
    while sum(alloc) < rest:
        alloc[alloc.index(min(alloc))] += 1
    return [count + least for count in alloc]


def owners_of(alloc):
    return [head for head, count in enumerate(alloc) for _ in range(count)]


CASES = [
    ("gqa", {"gqa_heads": 2}, [0, 0, 1, 1]),
    ("gqa", {"gqa_heads": 1}, [0, 0, 0, 0]),
    ("gqa", {}, [0, 0, 1, 1]),
    ("gqa", {"gqa_heads": 4}, [0, 1, 2, 3]),
    ("dgqa", {"dgqa_heads": 2}, [0, 0, 1, 1]),
    ("sqa", {"queries": 4, "keys": 2}, [0, 0, 1, 1]),
    ("sqa", {"queries": 2, "keys": 1}, [0, 0]),
    ("sqa", {"queries": 3, "keys": 3}, [0, 1, 2]),
    ("sqa", {}, [0, 0]),
]


@pytest.mark.parametrize(("name", "options", "owners"), CASES)
def test_head_by_head(name, options, owners):
    mixer = entry(name, **options)
    (x,) = rows_of(9, [24], rows=3)
    out = mixer(x, torch.tensor(ROWS))
    for row, n in enumerate(ROWS):
        expected = naive(mixer, x[row, :n], owners)
        torch.testing.assert_close(out[row, :n], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("groups", "least"), [(3, 0), (3, 1), (2, 0), (2, 3), (1, 0), (6, 0)])
def test_keys_deal_query_heads_in_each_row(groups, least):
    mixer = entry("kdgqa", heads=6, kdgqa_heads=groups, least=least)
    (x,) = rows_of(9, [24], rows=3)
    out = mixer(x, torch.tensor(ROWS))
    seen = set()
    for row, n in enumerate(ROWS):
        keys = torch.nn.functional.linear(x[row, :n], mixer.k_proj.weight, mixer.k_proj.bias)
        alloc = dealing([part.norm().item() for part in keys.split(4, 1)], 6, least)
        assert sum(alloc) == 6 and min(alloc) >= least
        seen.add(tuple(alloc))
        expected = naive(mixer, x[row, :n], owners_of(alloc))
        torch.testing.assert_close(out[row, :n], expected, rtol=0, atol=1e-12)
    assert len(seen) > 1 or groups in (1, 2)


def test_allocations_are_those_of_the_rule():
    torch.manual_seed(0)
    for groups in (1, 2, 3, 5, 8):
        norms = torch.rand(50, groups, dtype=torch.float64)
        # halves to round and equal shares
        norms[:10] = norms[:10].mul(4).round()
        low, high = norms.aminmax(dim=1, keepdim=True)
        shares = torch.where(high > low, (norms - low) / (high - low).clamp(min=1e-30), 1.0)
        for heads in (groups, 2 * groups, 16):
            found = allocate(shares, heads, 0)
            assert found.tolist() == [dealing(row, heads) for row in norms.tolist()]


def test_equal_norms_are_dealt_evenly():
    shares = torch.zeros(1, 4, dtype=torch.float64)
    assert allocate(shares, 8, 0).tolist() == [[2, 2, 2, 2]]


@pytest.mark.parametrize("name", ["gqa", "kdgqa", "dgqa", "sqa"])
def test_as_many_key_heads_as_heads_is_softmax(name):
    option = {"queries": 4, "keys": 4} if name == "sqa" else {f"{name}_heads": 4}
    if name == "kdgqa":
        option["least"] = 1
    mixer = entry(name, **option)
    plain = MultiHeadAttention(24, make("softmax", value_dim=24, query_dim=24, heads=4)).double()
    plain.load_state_dict(
        {key: value for key, value in mixer.state_dict().items() if "proj" in key}
    )
    (x,) = rows_of(7, [24], rows=2)
    lengths = SequenceLengths((7, 4), 7, torch.device("cpu"))
    expected = plain(x.transpose(0, 1), lengths).transpose(0, 1)
    found = mixer(x, torch.tensor([7, 4]))
    for row, n in enumerate((7, 4)):
        torch.testing.assert_close(found[row, :n], expected[row, :n], rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", ["diff", "ema"])
def test_training_deals_query_heads(rule):
    mixer = entry("dgqa", heads=6, dgqa_heads=3, rule=rule, window=2).train()
    (x,) = rows_of(9, [24], rows=3)
    with torch.no_grad():
        mixer.k_proj.weight[8:] *= 4
    assert mixer.alloc.tolist() == [2, 2, 2]
    cache = [0.0] * 3
    for update in range(1, 7):
        x = x * 1.3 + 0.1
        mixer(x[:2], torch.tensor(ROWS[:2]))
        mixer(x[2:], torch.tensor(ROWS[2:]))
        before = mixer.alloc.clone()
        norms = torch.stack(
            [
                torch.stack([part.norm() for part in mixer.k_proj(row[:n]).split(4, 1)])
                for row, n in zip(x, ROWS, strict=True)
            ]
        ).mean(0)
        mixer.after_update(update)
        if update % 2:
            assert mixer.alloc.equal(before)
            continue
        if rule == "diff":
            shares = [abs(old - new) for old, new in zip(cache, norms.tolist(), strict=True)]
        else:
            shares = [0.9 * new + 0.1 * old for old, new in zip(cache, norms.tolist(), strict=True)]
        alloc = [round(6 * share / sum(shares)) for share in shares]
        while sum(alloc) > 6:
            alloc[alloc.index(max(alloc))] -= 1
        while sum(alloc) < 6:
            alloc[alloc.index(min(alloc))] += 1
        assert mixer.alloc.tolist() == alloc
        cache = norms.tolist()
    assert mixer.alloc.tolist() != [2, 2, 2]


def test_evaluation_deals_nothing():
    mixer = entry("dgqa", heads=6, dgqa_heads=3).eval()
    (x,) = rows_of(9, [24], rows=1)
    state = copy.deepcopy(mixer.state_dict())
    mixer(x)
    mixer.after_update(1)
    for key, value in mixer.state_dict().items():
        assert value.equal(state[key])


@pytest.mark.parametrize("name", ["gqa", "kdgqa", "dgqa"])
def test_published_attention_is_averaged(name, caplog):
    options = {"encoder_attention_heads": 4, "encoder_layers": 1}
    own = small("transformer_lra_imdb", seed=1, **options)
    other = small("transformer_lra_imdb", seed=2, attention=name, **{f"{name}_heads": 2}, **options)
    state = {key: value.clone() for key, value in own.state_dict().items()}
    with caplog.at_level(logging.INFO):
        other.upgrade_state_dict_named(state, "")
    assert "averaged keys and values of 4 heads to 2" in caplog.text
    other.load_state_dict(state)
    prefix = "encoder.encoder.layers.0.self_attn."
    for kind in "kv":
        full = own.state_dict()[f"{prefix}{kind}_proj.weight"]
        found = other.state_dict()[f"{prefix}{kind}_proj.weight"]
        expected = torch.cat([(full[0:2] + full[2:4]) / 2, (full[4:6] + full[6:8]) / 2])
        torch.testing.assert_close(found, expected)
    # and they load as they are the next time
    caplog.clear()
    other.upgrade_state_dict_named(state, "")
    assert not caplog.messages


@pytest.mark.parametrize("name", ["gqa", "kdgqa", "dgqa"])
def test_shared_name_of_the_option(name):
    assert entry(name, gqa_heads=1).keys == entry(name, **{f"{name}_heads": 1}).keys == 1


def test_parameters():
    """As the docstrings count them, for D = 24, h = 4."""
    for name, options, count in (
        ("gqa", {"gqa_heads": 2}, 2 * 24**2 * 1.5 + 2 * 24 * 1.5),
        ("sqa", {"queries": 2, "keys": 1}, 24**2 * (4 + 2) / 4 + 24 * (2 + 2) / 4 + 24),
    ):
        mixer = entry(name, **options)
        assert sum(p.numel() for p in mixer.parameters()) == count


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gqa", {"gqa_heads": 3}, "--gqa-heads is 3; it must be a divisor of the 4 heads"),
        ("gqa", {"gqa_heads": 0}, "--gqa-heads is 0; it must be a divisor"),
        ("kdgqa", {"kdgqa_heads": 8}, "--kdgqa-heads is 8; it must be a divisor"),
        ("kdgqa", {"least": 3}, "--kdgqa-least is 3; 4 query heads for 2 key heads allow 0 to 2"),
        ("kdgqa", {"least": -1}, "--kdgqa-least is -1; 4 query heads"),
        ("dgqa", {"window": 0}, "--dgqa-window is 0; it must be at least 1"),
        ("dgqa", {"rule": "sum"}, "--dgqa-rule is 'sum'; it must be one of diff, ema"),
        ("sqa", {"queries": 5}, "--sqa-queries is 5; it must be from 1 to the 4 heads"),
        ("sqa", {"keys": 3}, "--sqa-keys is 3; it must be a divisor of the 2 query heads"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(UserError, match=message):
        entry(name, **options)


def test_gated_families_refuse_them():
    with pytest.raises(UserError, match="--attention gqa cannot be used in mega; it takes .*csp"):
        small("mega_lra_imdb", attention="gqa")
