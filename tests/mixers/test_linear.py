"""Entries of linear cost, against the weights written down pair by pair."""

import math

import pytest
import torch

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention._features import draw_projection
from fairseq_csp.modules.attention.combiner import nearest_power
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.standalone import build_attention
from tests.mixers.rows import assert_equal_to_formula, make, rows_of


def test_linear():
    def formula(q, k, v, b, attention, head):
        f = torch.where(q > 0, q + 1, q.exp()), torch.where(k > 0, k + 1, k.exp())
        weights = f[0] @ f[1].T
        return weights @ v / (weights.sum(1, keepdim=True) + 1e-6)

    assert_equal_to_formula("linear", formula)


@pytest.mark.parametrize("name", ["linear", "performer", "combiner", "kernel_rpe"])
def test_constants_are_kept(name):
    """All values of 1 give 1 where the weights sum to 1 (but for linear's eps)."""
    module = build_attention(name, value_dim=4, query_dim=6, heads=2, max_positions=12).double()
    values, queries, keys = rows_of(12, [4, 6, 6], rows=2)
    out = module(torch.ones_like(values), torch.tensor([12, 5]), queries, keys)
    expected = torch.ones(12, 4, dtype=torch.double)
    torch.testing.assert_close(out[0], expected, rtol=0, atol=1e-6 if name == "linear" else 1e-12)
    torch.testing.assert_close(out[1, :5], expected[:5], rtol=0, atol=1e-6)


def test_cosformer():
    def formula(q, k, v, b, attention, head):
        n = len(q)
        apart = torch.arange(n)[:, None] - torch.arange(n)
        weights = q.relu() @ k.relu().T * torch.cos(math.pi / 2 * apart.double() / n)
        assert weights.ge(0).all()
        return weights @ v / weights.sum(1, keepdim=True).clamp(min=1e-6)

    assert_equal_to_formula("cosformer", formula)


def test_cosformer_where_all_weights_are_0():
    module = build_attention("cosformer", value_dim=4, query_dim=2).double()
    values, queries, keys = rows_of(6, [4, 2, 2])
    queries[0, 2] = -1
    keys = keys.abs()
    out = module(torch.ones_like(values), None, queries.abs() * queries.sign(), keys)[0]
    assert out[2].eq(0).all()
    some = queries[0].gt(0).any(1)
    torch.testing.assert_close(out[some], torch.ones(int(some.sum()), 4).double())


def test_performer():
    def formula(q, k, v, b, attention, head):
        w = attention.projection
        q, k = q / q.size(1) ** 0.25, k / k.size(1) ** 0.25
        directed, half = (
            (x @ w.T for x in (q, k)),
            [x.square().sum(1, keepdim=True) / 2 for x in (q, k)],
        )
        at_query, at_key = directed
        at_query = (at_query - half[0] - at_query.amax(1, keepdim=True)).exp() + 1e-4
        at_key = (at_key - half[1] - at_key.max()).exp() + 1e-4
        weights = at_query @ at_key.T
        return weights @ v / weights.sum(1, keepdim=True)

    assert_equal_to_formula("performer", formula, features=11)


def test_performer_with_relu():
    def formula(q, k, v, b, attention, head):
        f = [(x / x.size(1) ** 0.25 @ attention.projection.T).relu() + 1e-3 for x in (q, k)]
        weights = f[0] @ f[1].T
        return weights @ v / weights.sum(1, keepdim=True)

    assert_equal_to_formula("performer", formula, features=11, kernel="relu")


@pytest.mark.parametrize("eps", [1e-4, 0])
def test_performer_comes_closer_to_softmax_with_more_features(eps, monkeypatch):
    """Its eps limits how close: 0.19, 0.11 and 0.11 with it, 0.20, 0.11 and 0.07 without."""
    monkeypatch.setattr("fairseq_csp.modules.attention.performer.SOFTMAX_EPS", eps)
    values, queries, keys = (x.float() for x in rows_of(30, [8, 8, 8], rows=8))
    softmax = build_attention("softmax", value_dim=8)(values, None, queries, keys)
    errors = []
    for features in (16, 256, 4096):
        torch.manual_seed(0)
        draws = [build_attention("performer", value_dim=8, features=features) for _ in range(4)]
        found = torch.stack([module(values, None, queries, keys) for module in draws])
        errors.append((found - softmax).abs().mean().item())
    assert errors == pytest.approx([0.19, 0.115, 0.072 if eps == 0 else 0.11], abs=0.015)


def test_directions_are_orthogonal_and_as_long_as_normal_vectors():
    torch.manual_seed(0)
    projection = draw_projection(20, 8).double()
    lengths = projection.norm(dim=1)
    for block in projection.split(8):
        products = block @ block.T
        torch.testing.assert_close(products, products.diag().diag(), rtol=0, atol=1e-5)
    assert lengths.unique().numel() == 20
    many = draw_projection(4000, 8)
    assert abs(many.square().sum(1).mean() - 8) < 0.3
    assert many.mean().abs() < 0.05


def test_performer_draws_again():
    """At multiples of the number of updates, the same whatever torch's generator holds."""
    module = make("performer", value_dim=4, query_dim=4, features=6, redraw=10)
    first = module.projection.clone()
    for updates in (0, 1, 9, 11, 15):
        module.set_num_updates(updates)
        assert module.projection.equal(first)
    module.set_num_updates(10)
    second = module.projection.clone()
    assert not second.equal(first)
    module.set_num_updates(20)
    third = module.projection.clone()
    assert not third.equal(second)
    torch.manual_seed(7)
    module.set_num_updates(10)
    assert module.projection.equal(second)
    never = make("performer", value_dim=4, query_dim=4, features=6)
    before = never.projection.clone()
    never.set_num_updates(10)
    assert never.projection.equal(before)


def combine(q, k, v, b, attention, head):
    s, pool = attention.segment, attention.options.pool
    q = q / math.sqrt(q.size(1))
    pools = {
        "max": lambda x: x.max(0).values,
        "mean": lambda x: x.mean(0),
        "sum": lambda x: x.sum(0),
    }
    segments = [slice(first, first + s) for first in range(0, len(q), s)]
    pooled = [(pools[pool](q[t]), pools[pool](k[t])) for t in segments]
    summaries = torch.stack(
        [(k[t] @ qbar).softmax(0) @ v[t] for t, (qbar, _) in zip(segments, pooled, strict=True)]
    )
    out = []
    for i in range(len(q)):
        own = segments[i // s]
        scores = torch.cat([k[own] @ q[i], torch.stack([kbar @ q[i] for _, kbar in pooled])])
        weights = scores.softmax(0)
        near = len(k[own])
        out.append(weights[:near] @ v[own] + weights[near:] @ summaries)
    return torch.stack(out)


@pytest.mark.parametrize("pool", ["max", "mean", "sum"])
@pytest.mark.parametrize("segment", [1, 3, 20])
def test_combiner(segment, pool):
    assert_equal_to_formula("combiner", combine, segment=segment, pool=pool)


def test_combiner_sees_every_position():
    module = build_attention("combiner", value_dim=2, query_dim=4, segment=3).double()
    values, queries, keys = (x.requires_grad_() for x in rows_of(10, [2, 4, 4]))
    out = module(values, None, queries, keys)
    for i in range(10):
        (grad,) = torch.autograd.grad(out[0, i].sum(), values, retain_graph=True)
        assert grad[0].gt(0).all()


def test_one_segment_of_combiner_is_not_softmax():
    inputs = rows_of(5, [2, 4, 4])
    found, softmax = (
        build_attention(name, value_dim=2, query_dim=4, **options).double()(
            inputs[0], None, *inputs[1:]
        )
        for name, options in (("combiner", {"segment": 8}), ("softmax", {}))
    )
    assert (found - softmax).abs().max() > 0.01


def test_the_earlier_of_equal_keys_is_the_largest():
    module = build_attention("combiner", value_dim=2, query_dim=1, segment=4).double()
    values, queries, keys = rows_of(8, [2, 1, 1])
    # keys of the first segment matter to the second by their largest only
    keys[0, :4, 0] = torch.tensor([1, 3, 3, 2])
    keys.requires_grad_()
    out = module(values, None, queries, keys)[0, 4:]
    pooled_alone = torch.autograd.grad(out.sum(), keys)[0][0, :4, 0]
    # the softmax inside the segment moves both alike, the pooled key the earlier one only
    assert pooled_alone[1] != pooled_alone[2]


@pytest.mark.parametrize(
    ("positions", "segment"),
    [(1, 1), (4, 2), (1024, 32), (2002, 32), (4002, 64), (16384, 128), (2304, 32), (2305, 64)],
)
def test_segment_by_default(positions, segment):
    module = build_attention("combiner", value_dim=2, max_positions=positions)
    assert module.segment == segment == nearest_power(math.sqrt(positions))


def test_errors():
    for name, option in (
        ("combiner", "segment"),
        ("performer", "features"),
        ("kernel_rpe", "features"),
        ("linformer", "size"),
    ):
        flag = f"--{name}-{option}".replace("_", "-")
        with pytest.raises(UserError, match=f"{flag} is 0; it must be at least 1"):
            build_attention(name, value_dim=2, max_positions=4, **{option: 0})
    for name in ("combiner", "kernel_rpe", "linformer"):
        with pytest.raises(UserError, match=f"{name} needs max_positions"):
            build_attention(name, value_dim=2)
    with pytest.raises(UserError, match="--performer-redraw is -1; it must be at least 0"):
        build_attention("performer", value_dim=2, redraw=-1)
    with pytest.raises(UserError, match="--combiner-pool is 'min'; it must be one of max, mean"):
        build_attention("combiner", value_dim=2, max_positions=4, pool="min")


def kernel_rpe(q, k, v, b, attention, head):
    n, reach = len(q), attention.reach
    if attention.options.normalise:
        q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
    f = [(x @ attention.projection.T - x.square().sum(1, keepdim=True) / 2).exp() for x in (q, k)]
    numbers = attention.rpe[head]
    decay = torch.stack([numbers[reach - 1 - i : reach - 1 - i + n] for i in range(n)]).exp()
    weights = decay * (f[0] @ f[1].T)
    return weights @ v / weights.sum(1, keepdim=True)


@pytest.fixture(params=["pairs", "fourier"])
def form(request, monkeypatch):
    """Both ways in which kernel_rpe computes its sums."""
    longest = 8192 if request.param == "pairs" else 0
    monkeypatch.setattr("fairseq_csp.modules.attention.kernel_rpe.LONGEST_OF_PAIRS", longest)
    return request.param


@pytest.mark.parametrize("normalise", [True, False])
def test_kernel_rpe(normalise, form):
    assert_equal_to_formula("kernel_rpe", kernel_rpe, features=7, normalise=normalise)


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 100])
def test_kernel_rpe_of_any_length(n, form):
    assert_equal_to_formula("kernel_rpe", kernel_rpe, rows=(n,), features=3, max_positions=101)


def test_kernel_rpe_in_float32(form):
    module = make("kernel_rpe", value_dim=8, query_dim=16, max_positions=500)
    inputs = [x.transpose(1, 2) for x in rows_of(500, [8, 16, 16])]
    lengths = SequenceLengths((500,), 500, torch.device("cpu"))
    exact = module(inputs[0], lengths, *inputs[1:])
    found = module.float()(inputs[0].float(), lengths, *(x.float() for x in inputs[1:]))
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


def test_kernel_rpe_without_distances_is_performer_on_unit_vectors(form, monkeypatch):
    monkeypatch.setattr("fairseq_csp.modules.attention.performer.SOFTMAX_EPS", 0)
    values, queries, keys = rows_of(9, [6, 8, 8])
    module = build_attention("kernel_rpe", value_dim=6, query_dim=8, heads=2, max_positions=9)
    performer = build_attention("performer", value_dim=6, query_dim=8, heads=2, features=64)
    torch.nn.init.zeros_(module.rpe)
    performer.projection.copy_(module.projection)
    # performer divides by the fourth root of the width
    unit = [
        torch.nn.functional.normalize(x.unflatten(2, (2, 4)), dim=3).flatten(2) * 4**0.25
        for x in (queries, keys)
    ]
    torch.testing.assert_close(
        module.double()(values, None, queries, keys),
        performer.double()(values, None, *unit),
        rtol=0,
        atol=1e-12,
    )


def test_kernel_rpe_sees_differences_of_distances_only(form):
    module = build_attention("kernel_rpe", value_dim=6, heads=2, max_positions=9).double()
    torch.nn.init.normal_(module.rpe)
    values, queries, keys = rows_of(9, [6, 6, 6])
    before = module(values, None, queries, keys)
    with torch.no_grad():
        module.rpe += torch.tensor([[700.0], [-3.0]])
    torch.testing.assert_close(module(values, None, queries, keys), before)


def test_kernel_rpe_of_a_vector_of_zeros():
    module = build_attention("kernel_rpe", value_dim=4, max_positions=5).double()
    values, queries, keys = (x.requires_grad_() for x in rows_of(5, [4, 4, 4]))
    with torch.no_grad():
        queries[0, 1] = keys[0, 3] = 0
    out = module(values, None, queries, keys)
    for grad in torch.autograd.grad(out.sum(), (values, queries, keys)):
        assert grad.isfinite().all() and grad.abs().max() < 100


def test_kernel_rpe_some_features_at_a_time(monkeypatch):
    module = build_attention("kernel_rpe", value_dim=6, heads=2, max_positions=9).double()
    inputs = [x.requires_grad_() for x in rows_of(9, [6, 6, 6], rows=2)]
    sources = [*inputs, module.rpe]
    lengths = torch.tensor([9, 4])
    whole = module(inputs[0], lengths, *inputs[1:])
    expected = torch.autograd.grad(whole.square().sum(), sources)
    monkeypatch.setattr("fairseq_csp.modules.attention.kernel_rpe.LONGEST_OF_PAIRS", 0)
    monkeypatch.setattr("fairseq_csp.modules.attention.kernel_rpe.MOST_PRODUCTS", 2000)
    parts = module(inputs[0], lengths, *inputs[1:])
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts.square().sum(), sources), expected)


@pytest.mark.parametrize("share", [False, True])
def test_linformer(share):
    def formula(q, k, v, b, attention, head):
        e = attention.projection[0 if share else head][:, : len(q)]
        return (q @ (e @ k).T / math.sqrt(q.size(1))).softmax(1) @ (e @ v)

    assert_equal_to_formula("linformer", formula, size=6, share=share)


def test_linformer_without_compression_is_softmax():
    values, queries, keys = rows_of(9, [6, 4, 4])
    module = build_attention(
        "linformer", value_dim=6, query_dim=4, heads=2, max_positions=9, size=9
    ).double()
    with torch.no_grad():
        module.projection.copy_(torch.eye(9))
    softmax = build_attention("softmax", value_dim=6, query_dim=4, heads=2)
    torch.testing.assert_close(
        module(values, None, queries, keys),
        softmax(values, None, queries, keys),
        rtol=0,
        atol=1e-12,
    )


def test_linformer_learns_only_where_there_are_positions():
    module = build_attention("linformer", value_dim=4, max_positions=12, size=5).double()
    values, queries, keys = rows_of(9, [4, 4, 4], rows=2)
    module(values, torch.tensor([7, 4]), queries, keys).square().sum().backward()
    assert module.projection.grad[:, :, 7:].eq(0).all()
    assert module.projection.grad[:, :, :7].ne(0).all()


@pytest.mark.parametrize(("name", "part"), [("linformer", "projection"), ("kernel_rpe", "bias")])
def test_a_row_that_is_too_long(name, part):
    module = build_attention(name, value_dim=4, max_positions=5)
    x = torch.zeros(1, 7, 4)
    module(x, torch.tensor([5]), x, x)
    with pytest.raises(UserError, match=f"a row has 6 positions, but {name}'s {part} reaches only"):
        module(x, torch.tensor([6]), x, x)


def test_parameters():
    """Names and shapes are those under which published weights are given."""
    shapes = {
        name: {key: tuple(value.shape) for key, value in made.state_dict().items()}
        for name in ("linear", "cosformer", "performer", "combiner", "kernel_rpe", "linformer")
        for made in [build_attention(name, value_dim=24, query_dim=32, heads=4, max_positions=50)]
    }
    assert shapes == {
        "linear": {},
        "cosformer": {},
        "performer": {"projection": (256, 8)},
        "combiner": {},
        "kernel_rpe": {"rpe": (4, 99), "projection": (64, 8)},
        "linformer": {"projection": (4, 256, 50)},
    }
