"""Attention in blocks of queries, and by PyTorch's fused kernels, gives the same numbers."""

import pytest
import torch

from fairseq_csp.modules.attention import AttentionOptions, attention_class, scores
from fairseq_csp.modules.relative_bias import build_relative_bias
from fairseq_csp.modules.rows import Rows


def attend(name, bias, lengths, dtype=torch.float64):
    """Output and gradients of one attention function on fixed numbers."""
    generator = torch.Generator().manual_seed(0)
    values, queries, keys, incoming = (
        torch.randn(len(lengths), width, 11, generator=generator, dtype=dtype)
        for width in (5, 4, 4, 5)
    )
    leaves = [x.requires_grad_() for x in (values, queries, keys)]
    rows = Rows(lengths, 11, values.device)
    mixed = attention_class(name)(AttentionOptions())(values, rows, queries, keys, bias)
    mixed = rows.zero_padding(mixed)
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
    monkeypatch.setattr(scores, "MOST_SCORES", most)
    for ours, expected in zip(attend(name, bias, lengths), whole, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("lengths", [(11, 11), (11, 3), (11, 0)], ids=str)
@pytest.mark.parametrize("kind", ["rotary", None])
def test_fused_kernel_equals_the_matrix(kind, lengths):
    bias = None if kind is None else build_relative_bias(kind, 15, 4).double()
    fused = attend("softmax", bias, lengths)
    explicit = scores.ScoreAttention.forward
    function = attention_class("softmax")
    own, function.forward = function.forward, explicit
    try:
        expected = attend("softmax", bias, lengths)
    finally:
        function.forward = own
    for ours, theirs in zip(fused, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
