"""Sinkformer, Synthesizer, gMLP and channel attention against loops over rows."""

import pytest
import torch
import torch.nn.functional as F

from fairseq_csp import build_attention
from fairseq_csp.errors import UserError

COUNTS = (9, 1, 4)


def random_input(*widths):
    """Tensors (rows, 9, width) in float64 with NaN at the padding."""
    torch.manual_seed(0)
    made = [torch.randn(len(COUNTS), 9, width, dtype=torch.double) for width in widths]
    for x in made:
        for row, n in enumerate(COUNTS):
            x[row, n:] = torch.nan
    return made


@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_sinkformer(iterations):
    mixer = build_attention("sinkformer", value_dim=6, query_dim=4, heads=2, iterations=iterations)
    v, q, k = random_input(6, 4, 4)
    out = mixer(v, torch.tensor(COUNTS), q, k)
    for row, n in enumerate(COUNTS):
        for head in range(2):
            narrow, wide = slice(2 * head, 2 * head + 2), slice(3 * head, 3 * head + 3)
            weights = (q[row, :n, narrow] @ k[row, :n, narrow].T / 2**0.5).exp()
            for iteration in range(iterations):
                weights = weights / weights.sum(1 - iteration % 2, keepdim=True)
            expected = weights @ v[row, :n, wide]
            torch.testing.assert_close(out[row, :n, wide], expected, rtol=0, atol=1e-10)


def test_sinkformer_of_one_iteration_is_softmax():
    v, q, k = random_input(6, 4, 4)
    once, softmax = (
        build_attention(name, value_dim=6, query_dim=4, **options)(v, torch.tensor(COUNTS), q, k)
        for name, options in (("sinkformer", {"iterations": 1}), ("softmax", {}))
    )
    torch.testing.assert_close(once, softmax, rtol=0, atol=1e-12)


def test_sinkformer_comes_to_columns_of_one():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 7, 4, dtype=torch.double)
    off = []
    for iterations in (1, 3, 9, 101):
        mixer = build_attention("sinkformer", value_dim=7, query_dim=4, iterations=iterations)
        weights = mixer(torch.eye(7, dtype=torch.double)[None], None, q, k)[0]
        torch.testing.assert_close(weights.sum(1), torch.ones(7, dtype=torch.double))
        off.append((weights.sum(0) - 1).abs().max())
    assert off == sorted(off, reverse=True)
    assert off[-1] < 1e-6


@pytest.mark.parametrize("iterations", [0, 2, -1])
def test_sinkformer_refuses_even_iterations(iterations):
    with pytest.raises(UserError, match=f"--sinkformer-iterations is {iterations}; it must be an"):
        build_attention("sinkformer", value_dim=4, iterations=iterations)


@pytest.mark.parametrize("kind", ["dense", "random"])
def test_synthesizer(kind):
    mixer = build_attention("synthesizer", value_dim=6, max_positions=12, kind=kind).double()
    (v,) = random_input(6)
    out = mixer(v, torch.tensor(COUNTS))
    for row, n in enumerate(COUNTS):
        if kind == "dense":
            scores = mixer.score(F.relu(mixer.hidden(v[row, :n])))[:, :n]
        else:
            scores = mixer.score[:n, :n]
        expected = scores.softmax(1) @ v[row, :n]
        torch.testing.assert_close(out[row, :n], expected, rtol=0, atol=1e-10)


def test_gmlp():
    mixer = build_attention("gmlp", value_dim=6, max_positions=12).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += torch.randn_like(parameter)
    (v,) = random_input(6)
    out = mixer(v, torch.tensor(COUNTS))
    for row, n in enumerate(COUNTS):
        x = v[row, :n]
        normed = F.layer_norm(x, [6], mixer.norm.weight, mixer.norm.bias)
        expected = x * (mixer.weight[:n, :n] @ normed + mixer.bias[:n, None])
        torch.testing.assert_close(out[row, :n], expected, rtol=0, atol=1e-10)


def test_gmlp_begins_almost_as_the_identity():
    torch.manual_seed(0)
    v = torch.randn(2, 30, 6)
    mixed = build_attention("gmlp", value_dim=6, max_positions=30)(v)
    torch.testing.assert_close(mixed, v, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("name", ["synthesizer", "gmlp"])
def test_longer_rows_than_learnt_for(name):
    with pytest.raises(UserError, match="a row has 9 positions, .* reaches only 8: raise"):
        build_attention(name, value_dim=6, max_positions=8)(torch.randn(1, 9, 6))
    with pytest.raises(UserError, match=f"{name} needs max_positions"):
        build_attention(name, value_dim=6)


def test_channel_needs_equal_widths():
    with pytest.raises(UserError, match="queries as wide as values, but they have 4 and 6"):
        build_attention("channel", value_dim=6, query_dim=4)


def test_hilo_on_text():
    mixer = build_attention("hilo", value_dim=8, heads=4, window=3, alpha=0.25).double()
    (x,) = random_input(8)
    out = mixer(x, torch.tensor(COUNTS))
    for row, n in enumerate(COUNTS):
        own = x[row, :n]
        parts = [own[start : start + 3] for start in range(0, n, 3)]
        near = []
        for part in parts:
            q, k, v = mixer.h_qkv(part).unflatten(1, (3, 3, 2)).unbind(1)
            weights = (torch.einsum("ihz,jhz->hij", q, k) / 2**0.5).softmax(2)
            near.append(torch.einsum("hij,jhz->ihz", weights, v).flatten(1))
        means = torch.stack([part.mean(0) for part in parts])
        k, v = mixer.l_kv(means).chunk(2, 1)
        far = (mixer.l_q(own) @ k.T / 2**0.5).softmax(1) @ v
        expected = torch.cat([mixer.h_proj(torch.cat(near)), mixer.l_proj(far)], 1)
        torch.testing.assert_close(out[row, :n], expected, rtol=0, atol=1e-10)


def test_biformer_on_text():
    mixer = build_attention("biformer", value_dim=6, heads=2, regions=3, top=2).double()
    (x,) = random_input(6)
    out = mixer(x, torch.tensor(COUNTS))
    for row, n in enumerate(COUNTS):
        q, k, v = mixer.qkv(x[row, :n]).chunk(3, 1)
        regions = [list(range(t * n // 3, (t + 1) * n // 3)) for t in range(3)]
        filled = [region for region in regions if region]
        mixed = mixer.lepe(v.T).T.clone()
        for region in filled:
            fits = [float(q[region].mean(0) @ k[other].mean(0)) for other in filled]
            best = sorted(range(len(filled)), key=lambda t: -fits[t])[:2]
            keys = [position for t in best for position in filled[t]]
            for head in (slice(0, 3), slice(3, 6)):
                weights = (q[region, head] @ k[keys, head].T / 6**0.5).softmax(1)
                mixed[region, head] += weights @ v[keys, head]
        expected = mixer.wo(mixed)
        torch.testing.assert_close(out[row, :n], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("spectral", {}, "--attention spectral is for images; for text there is fnet"),
        ("hilo", {"grid": (5, 4)}, "--hilo-window 2 does not divide the image of 5 x 4"),
        ("hilo", {"window": 0}, "--hilo-window is 0; it must be at least 1"),
        ("hilo", {"alpha": 1.5}, "--hilo-alpha is 1.5; it must be between 0 and 1"),
        ("biformer", {"grid": (9, 8)}, "--biformer-regions 8 does not divide the image of 9 x 8"),
        ("biformer", {"top": 0}, "--biformer-top is 0; it must be at least 1"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(UserError, match=message):
        build_attention(name, value_dim=8, heads=2, **options)


@pytest.mark.parametrize("name", ["hilo", "biformer", "spectral"])
def test_another_image_than_built_for(name):
    options = {"regions": 2} if name == "biformer" else {}
    mixer = build_attention(name, value_dim=8, heads=2, grid=(4, 4), **options)
    with pytest.raises(UserError, match="an image has 15 positions, but .* built for 4 x 4"):
        mixer(torch.randn(1, 15, 8))


def test_hyena_two_way():
    """The gates, the convolutions both ways and the maps by loops over positions."""
    mixer = build_attention("hyena", value_dim=4, max_positions=12, filter_width=5).double()
    (x,) = random_input(4)
    out = mixer(x, torch.tensor(COUNTS))
    taps, bias = mixer.short_filter.weight[:, 0], mixer.short_filter.bias
    for row, n in enumerate(COUNTS):
        inner = F.pad(mixer.in_proj(x[row, :n]), (0, 0, 1, 1))
        inner = sum(inner[k : k + n] * taps[:, k] for k in range(3)) + bias
        gate, other, v = inner.chunk(3, 1)
        product = v * other
        ahead, back = mixer.filter_fn(n), mixer.filter_back(n)
        mixed = product * mixer.filter_fn.bias
        for i in range(n):
            for j in range(n):
                kernel = ahead[:, i - j] if j <= i else back[:, j - i]
                mixed[i] = mixed[i] + kernel * product[j]
        expected = mixer.out_proj(mixed * gate)
        torch.testing.assert_close(out[row, :n], expected, rtol=0, atol=1e-10)


def test_gau_mixed():
    mixer = build_attention("gau_mixed", value_dim=6, query_dim=4, chunk=4).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += torch.randn_like(parameter)
    v, q, k = random_input(6, 4, 4)
    out = mixer(v, torch.tensor(COUNTS), q, k)
    for row, n in enumerate(COUNTS):
        far = [x[row, :n] * mixer.gamma[i] + mixer.beta[i] for i, x in enumerate((q, k))]
        expected = far[0] @ far[1].T @ v[row, :n] / n
        for start in range(0, n, 4):
            part = slice(start, min(start + 4, n))
            count = part.stop - part.start
            weights = (q[row, part] @ k[row, part].T / count).relu() ** 2
            expected[part] += weights @ v[row, part]
        torch.testing.assert_close(out[row, :n], expected, rtol=0, atol=1e-10)


def test_cga():
    mixer = build_attention("cga", value_dim=6, heads=3).double()
    (x,) = random_input(6)
    out = mixer(x, torch.tensor(COUNTS))
    for row, n in enumerate(COUNTS):
        mixed = []
        for head in range(3):
            part = x[row, :n, 2 * head : 2 * head + 2] + (mixed[-1] if mixed else 0)
            q, k, v = mixer.qkv[head](part).chunk(3, 1)
            mixed.append((q @ k.T / 2**0.5).softmax(1) @ v)
        expected = mixer.out_proj(torch.cat(mixed, 1))
        torch.testing.assert_close(out[row, :n], expected, rtol=0, atol=1e-10)
