"""Attention in blocks of queries, and by PyTorch's fused kernels, gives the same numbers."""

import pytest
import torch

from fairseq_csp.modules.attention import AttentionContext, _scores, make_attention
from fairseq_csp.modules.attention.softmax import SoftmaxAttention
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.relative_bias import build_relative_bias


def attend(name, bias, lengths, dtype=torch.float64):
    """Output and gradients of one attention function on fixed numbers."""
    generator = torch.Generator().manual_seed(0)
    values, queries, keys, incoming = (
        torch.randn(len(lengths), width, 11, generator=generator, dtype=dtype)
        for width in (5, 4, 4, 5)
    )
    leaves = [x.requires_grad_() for x in (values, queries, keys)]
    lengths = SequenceLengths(lengths, 11, values.device)
    attention = make_attention(name, AttentionContext(5, 4), {})
    mixed = attention(values, lengths, queries, keys, bias)
    mixed = lengths.zero_padding(mixed)
    if bias is not None:
        leaves += list(bias.parameters())
    return [mixed, *torch.autograd.grad(mixed, leaves, incoming)]


@pytest.mark.parametrize("lengths", [(11, 11), (11, 3)], ids=str)
@pytest.mark.parametrize("kind", ["simple", "rotary"])
@pytest.mark.parametrize("name", ["softmax", "relu2", "laplace"])
@pytest.mark.parametrize("most", [1, 22 * 3, 22 * 10])
def test_blocks_equal_the_whole(name, kind, lengths, most, monkeypatch):
    bias = build_relative_bias(kind, 15, 4).double()
    whole = attend(name, bias, lengths)
    monkeypatch.setattr(_scores, "MOST_SCORES", most)
    for ours, expected in zip(attend(name, bias, lengths), whole, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("lengths", [(11, 11), (11, 3), (11, 0)], ids=str)
@pytest.mark.parametrize("kind", ["rotary", None])
def test_fused_kernel_equals_the_matrix(kind, lengths, monkeypatch):
    bias = None if kind is None else build_relative_bias(kind, 15, 4).double()
    fused = attend("softmax", bias, lengths)
    monkeypatch.setattr(SoftmaxAttention, "mix", _scores.ScoreAttention.mix)
    expected = attend("softmax", bias, lengths)
    for ours, theirs in zip(fused, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
