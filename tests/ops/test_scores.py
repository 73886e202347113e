"""The kernels from scores to weights against the attention functions, autograd and dropout."""

import pytest
import torch

from fairseq_csp.modules.attention import AttentionContext, make_attention
from fairseq_csp.modules.attention.laplace import LaplaceAttention
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.ops.dropout import drop_by_seed
from fairseq_csp.ops.scores import (
    KINDS,
    add_diagonals,
    dropped_weights,
    dropped_weights_backward,
    has_kernel,
)
from tests.helpers.kernels import use_implementation

# of several blocks of 64 and of a part of one
KEYS, QUERIES = 200, 7
LENGTHS = (KEYS, 77, 64, 1)
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def native(monkeypatch):
    use_implementation("native", monkeypatch)


def draw(dtype):
    generator = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), QUERIES, KEYS)
    scores, grad = (2 * torch.randn(2, *shape, generator=generator)).to(dtype)
    # what stands at padded keys must not matter
    for row, length in enumerate(LENGTHS):
        scores[row, :, length:] = torch.nan
        grad[row, :, length:] = torch.nan
    return scores, grad


def expected(kind, scores, grad, p, seed):
    """The weights, with dropout, and the gradient of the scores, in float32."""
    attention = make_attention(kind, AttentionContext(5, 4), {})
    lengths = SequenceLengths(LENGTHS, KEYS, scores.device)
    scores = lengths_first(scores).float().requires_grad_()
    weights = attention.weights(scores, lengths)
    grad = lengths_first(grad).float()
    used = weights
    if p:
        used, grad = (drop_by_seed(x, p, seed) for x in (weights.detach(), grad))
    (grad_scores,) = torch.autograd.grad(weights, scores, grad)
    return used.detach(), grad_scores


def lengths_first(x):
    """What is padded as 0: not even the formula may multiply NaN."""
    keep = torch.arange(KEYS) < torch.tensor(LENGTHS)[:, None, None]
    return x.where(keep, 0)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_gradients(kind, dtype, p):
    scores, grad = draw(dtype)
    assert has_kernel(kind, scores)
    seed = torch.tensor(5) if p else None
    weights, grad_scores = expected(kind, scores, grad, p, seed)
    given = (LENGTHS, p, seed)
    forward = dropped_weights(kind, scores.clone(), *given)
    again, found = dropped_weights_backward(kind, scores.clone(), grad.clone(), *given)
    assert forward.dtype == found.dtype == dtype
    assert torch.equal(again, forward)
    for ours, theirs in ((forward, weights), (found, grad_scores)):
        limit = TOLERANCE[dtype] * max(1, theirs.abs().max().item())
        torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=limit)
    for row, length in enumerate(LENGTHS):
        assert not forward[row, :, length:].any() and not found[row, :, length:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_without_keys_and_scores_that_are_none(kind):
    scores = torch.zeros(2, 3, 70)
    scores[1, 0, 5] = torch.nan
    weights = dropped_weights(kind, scores.clone(), (0, 70), 0.0, None)
    assert not weights[0].any()
    assert weights[1, 0, 5].isnan() and weights[1, 1:].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2])
def test_large_scores(threads):
    scores = torch.tensor([[[1000.0, 999.0, -torch.inf, -1000.0]]]).repeat(1, 40, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        weights = dropped_weights("softmax", scores.clone(), (4,), 0.0, None)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(weights, scores.softmax(2))


def test_what_has_no_kernel(monkeypatch):
    scores = torch.zeros(1, 2, 3)
    assert not has_kernel(None, scores) and not has_kernel("sigmoid", scores)
    assert not has_kernel("softmax", scores.double())
    monkeypatch.setenv("FAIRSEQ_CSP_KERNELS", "reference")
    assert not has_kernel("softmax", scores)


def test_a_function_that_is_overridden_has_none():
    class Other(LaplaceAttention):
        def function(self, scores):
            return scores

    class Masked(LaplaceAttention):
        def weights(self, scores, lengths):
            return scores

    context = AttentionContext(5, 4)
    kernels = [cls(context).kernel() for cls in (LaplaceAttention, Other, Masked)]
    assert kernels == ["laplace", None, None]
    names = ("softmax", "relu2", "laplace", "sigmoid")
    kernels = [make_attention(name, context, {}).kernel() for name in names]
    assert kernels == ["softmax", "relu2", "laplace", None]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [((3,), "a length for each sequence"), ((3, 4), "not within the keys")],
)
def test_lengths_that_do_not_fit(lengths, message):
    with pytest.raises(RuntimeError, match=message):
        dropped_weights("softmax", torch.zeros(2, 2, 3), lengths, 0.0, None)


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 3, 2000), (2, 70, 5), (3, 1, 1)], ids=str)
def test_diagonals(shape, dtype, kernels, monkeypatch):
    use_implementation(kernels, monkeypatch)
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(shape, generator=generator).to(dtype)
    rows, columns = shape[1:]
    wide = torch.promote_types(dtype, torch.float32)
    line = torch.ones(rows + columns - 1, dtype=wide)
    add_diagonals(line, pairs)
    turned = pairs.to(wide).sum(0).flip(0)
    sums = [turned.diagonal(k).sum() for k in range(1 - rows, columns)]
    torch.testing.assert_close(line, 1 + torch.stack(sums), rtol=1e-5, atol=1e-5)
