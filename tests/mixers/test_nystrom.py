"""Nyströmformer against softmax and a naive loop over rows."""

import itertools

import pytest
import torch

from fairseq_csp import build_attention
from fairseq_csp.errors import UserError


def naive(values, queries, keys, m):
    """One head of one row, by loops over the segments."""
    n, scale = len(values), queries.size(1) ** -0.5
    if n <= m:
        return (queries @ keys.T * scale).softmax(1) @ values
    edges = [t * n // m for t in range(m + 1)]
    query_marks, key_marks = (
        torch.stack([x[a:b].mean(0) for a, b in itertools.pairwise(edges)]) for x in (queries, keys)
    )
    first = (queries @ key_marks.T * scale).softmax(1)
    middle = (query_marks @ key_marks.T * scale).softmax(1)
    last = (query_marks @ keys.T * scale).softmax(1)
    one = torch.eye(m, dtype=values.dtype)
    inverse = middle.T / middle.sum(0).max()
    for _ in range(6):
        p = middle @ inverse
        inverse = inverse / 4 @ (13 * one - p @ (15 * one - p @ (7 * one - p)))
    return first @ inverse @ last @ values


def random(counts, width, channels, heads=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(counts), max(counts))
    made = [
        torch.randn(*shape, heads * c, dtype=torch.float64, generator=generator)
        for c in (channels, width, width)
    ]
    for x in made:
        for row, n in enumerate(counts):
            x[row, n:] = torch.nan
    return made


def test_rows_of_all_lengths():
    counts, heads, m = (23, 5, 1, 6, 13, 7), 2, 6
    v, q, k = random(counts, 4, 3, heads)
    mixer = build_attention(
        "nystrom", value_dim=6, query_dim=8, heads=heads, landmarks=m, conv=3
    ).double()
    out = mixer(v, torch.tensor(counts), q, k)
    for row, n in enumerate(counts):
        for head in range(heads):
            own, wide = slice(head * 3, head * 3 + 3), slice(head * 4, head * 4 + 4)
            expected = naive(v[row, :n, own], q[row, :n, wide], k[row, :n, wide], m)
            padded = torch.nn.functional.pad(v[row, :n, own], (0, 0, 1, 1))
            for tap in range(3):
                expected = expected + mixer.conv[head, 0, tap] * padded[tap : tap + n]
            torch.testing.assert_close(out[row, :n, own], expected, rtol=0, atol=1e-12)


def test_enough_landmarks_give_softmax_and_more_come_closer():
    # neighbours that are alike, as landmarks suppose
    v, q, k = (x.cumsum(1) / 3 for x in random((40,), 8, 3))
    softmax = build_attention("softmax", value_dim=3, query_dim=8)(v, None, q, k)
    errors = []
    for landmarks in (4, 10, 20, 40, 64):
        mixer = build_attention("nystrom", value_dim=3, query_dim=8, landmarks=landmarks, conv=0)
        errors.append((mixer(v, None, q, k) - softmax).abs().mean().item())
    assert errors[0] > errors[1] > errors[2] > 1e-3
    assert max(errors[3:]) < 1e-12


def test_gradcheck():
    v, q, k = (x.nan_to_num(0).requires_grad_() for x in random((7, 2, 4), 2, 2))
    mixer = build_attention("nystrom", value_dim=2, landmarks=3, conv=3).double()
    lengths = torch.tensor([7, 2, 4])
    assert torch.autograd.gradcheck(lambda *x: mixer(x[0], lengths, *x[1:]), (v, q, k))


def test_parameters():
    mixer = build_attention("nystrom", value_dim=12, heads=3)
    assert {name: tuple(p.shape) for name, p in mixer.named_parameters()} == {"conv": (3, 1, 35)}
    assert mixer.conv.abs().max() < 35**-0.5
    assert not list(build_attention("nystrom", value_dim=12, conv=0).parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"landmarks": 0}, "--nystrom-landmarks is 0; it must be at least 1"),
        ({"conv": 4}, "--nystrom-conv is 4; it must be odd"),
        ({"conv": -1}, "--nystrom-conv is -1; it must be odd"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        build_attention("nystrom", value_dim=2, **options)
