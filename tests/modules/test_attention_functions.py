"""The registry, and each attention function on padded rows."""

import math

import pytest
import torch

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import (
    AttentionContext,
    AttentionFunction,
    ValueAttention,
    make_attention,
    register_attention,
)
from fairseq_csp.modules.gated_attention_unit import GatedAttentionUnit
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.relative_bias import SimpleRelativeBias
from fairseq_csp.modules.transformer_layer import MultiHeadAttention, TransformerEncoderLayer


class MeanAttention(ValueAttention):
    """A function that is not registered."""

    def forward(self, values, lengths):
        total = lengths.zero_padding(values).sum(2, keepdim=True)
        return (total / lengths.tensor[:, None, None]).expand_as(values)


def make(name, dropout=0.0, heads=1, width=4):
    context = AttentionContext(width, width, heads=heads, dropout=dropout)
    return make_attention(name, context, {})


def lengths_of(*lengths):
    return SequenceLengths(lengths, max(lengths), torch.device("cpu"))


def test_unknown_name():
    with pytest.raises(UserError, match="--attention is 'median'; it must be one of .*csp, "):
        make("median")


def test_name_that_is_taken():
    with pytest.raises(ValueError, match="named 'csp' is registered already"):
        register_attention("csp")(MeanAttention)


def test_name_that_is_not_the_files():
    with pytest.raises(ValueError, match="'median' in test_attention_functions.py: name the file"):
        register_attention("median")(MeanAttention)


@pytest.mark.parametrize("cls", [torch.nn.Linear, AttentionFunction])
def test_class_of_another_kind(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} must extend ValueAttention, QueryKey"):
        register_attention("another")(cls)


def test_map_of_a_function_that_has_none():
    with pytest.raises(UserError, match="has no attention map"):
        MeanAttention(AttentionContext(4)).attention_map(torch.zeros(1, 4, 3), lengths_of(3))


def test_heads_are_folded_and_unfolded():
    attention = make("softmax", heads=3, width=12)
    x = torch.randn(2, 12, 5)
    folded = attention.fold(x)
    assert folded.shape == (6, 4, 5)
    assert folded[4].equal(x[1, 4:8])
    assert attention.unfold(folded).equal(x)


def test_new_function_in_a_gated_unit():
    unit = GatedAttentionUnit(
        4, 6, 2, attention=MeanAttention(AttentionContext(6)), hidden_dropout=0.0,
        relative_bias="simple", max_positions=9,
    )  # fmt: skip
    x = torch.randn(2, 4, 5)
    gate, values = torch.nn.functional.silu(
        x.transpose(1, 2) @ unit.proj.weight.T + unit.proj.bias
    ).chunk(2, dim=2)
    mixed = torch.stack([values[0].mean(0), values[1, :3].mean(0)])[:, None]
    expected = (gate * mixed) @ unit.out_proj.weight.T + unit.out_proj.bias
    torch.testing.assert_close(unit(x, lengths_of(5, 3)).transpose(1, 2), expected)
    assert {name for name, _ in unit.named_parameters()} == {
        "proj.weight", "proj.bias", "out_proj.weight", "out_proj.bias",
    }  # fmt: skip


def test_new_function_in_a_transformer_layer():
    attention = MultiHeadAttention(4, MeanAttention(AttentionContext(4)))
    layer = TransformerEncoderLayer(
        attention, 4, 6, activation_fn="relu", dropout=0.0, hidden_dropout=0.0
    )
    x = torch.randn(5, 1, 4)
    alone = layer(x, lengths_of(5))
    padded = torch.cat([x, torch.randn(2, 1, 4)])
    lengths = SequenceLengths((5,), 7, torch.device("cpu"))
    torch.testing.assert_close(layer(padded, lengths)[:5], alone)


@pytest.mark.parametrize("name", ["softmax", "relu2", "laplace"])
def test_rows_by_themselves(name):
    """Each row equals the formula on its valid part; what stands at its padding is not read."""
    torch.manual_seed(0)
    counts, width, positions = (5, 1, 3), 4, 6
    attention = make(name)
    bias = SimpleRelativeBias(8)
    values, queries, keys = (torch.randn(3, channels, positions) for channels in (7, width, width))
    for row, n in enumerate(counts):
        values[row, :, n:] = 1e6
        keys[row, :, n:] = 1e3
    lengths = SequenceLengths(counts, positions, torch.device("cpu"))
    found = attention(values, lengths, queries, keys, bias)
    for row, n in enumerate(counts):
        scale = 1 / math.sqrt(width) if name == "softmax" else 1 / n
        scores = queries[row, :, :n].T @ keys[row, :, :n] * scale + bias(positions)[:n, :n]
        if name == "softmax":
            weights = scores.softmax(1)
        elif name == "relu2":
            weights = scores.relu() ** 2
        else:
            weights = 0.5 * (1 + torch.erf((scores - 0.707107) / (0.282095 * math.sqrt(2))))
        torch.testing.assert_close(found[row, :, :n], values[row, :, :n] @ weights.T)


@pytest.mark.parametrize("name", ["softmax", "relu2", "laplace"])
def test_row_without_valid_keys_is_finite(name):
    """A chunk may hold nothing but padding."""
    attention = make(name)
    values = torch.randn(2, 3, 4, requires_grad=True)
    queries = torch.randn(2, 2, 4, requires_grad=True)
    lengths = SequenceLengths((4, 0), 4, torch.device("cpu"))
    out = attention(values, lengths, queries, queries, None)
    out.sum().backward()
    assert out.isfinite().all()
    assert queries.grad.isfinite().all()


def test_attention_dropout():
    attention = make("softmax", dropout=0.5)
    torch.manual_seed(0)
    values, queries = torch.eye(200)[None], torch.randn(1, 4, 200)
    lengths = lengths_of(200)
    weights = attention(values, lengths, queries, queries, None)
    assert 0.45 < (weights == 0).float().mean() < 0.55
    attention.eval()
    weights = attention(values, lengths, queries, queries, None)
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 200))


def test_csp_options_are_checked_when_built():
    with pytest.raises(UserError, match="--csp-shift is 'sideways'; it must be one of exponential"):
        make_attention("csp", AttentionContext(4), {"shift": "sideways"})


def test_dropping_of_weights_on_a_cpu():
    """It has a path of its own there, which must give the same attention with little dropped."""
    torch.manual_seed(0)
    attention, lengths = MultiHeadAttention(12, make("softmax", 1e-9, 3, 12)), lengths_of(7, 4)
    x = torch.randn(7, 2, 12)
    dropping = attention.train()(x, lengths)
    for row, length in enumerate(lengths.host):
        alone = attention.eval()(x[:length, row : row + 1], lengths_of(length))
        torch.testing.assert_close(dropping[:length, row : row + 1], alone)
    attention.attention = make("softmax", 0.5, 3, 12)
    assert not torch.allclose(attention.train()(x, lengths), dropping)
