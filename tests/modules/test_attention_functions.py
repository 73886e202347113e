"""The registry, and each attention function on padded rows."""

import math

import pytest
import torch

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import (
    ATTENTION_REGISTRY,
    AttentionFunction,
    AttentionOptions,
    attention_class,
    register_attention,
)
from fairseq_csp.modules.gated_attention_unit import GatedAttentionUnit
from fairseq_csp.modules.relative_bias import SimpleRelativeBias
from fairseq_csp.modules.rows import Rows
from fairseq_csp.modules.transformer_layer import (
    SelfAttention,
    TransformerEncoderLayer,
    ValueAttention,
)


@pytest.fixture
def mean_attention():
    """The example of the registry's docstring."""

    @register_attention("mean")
    class MeanAttention(AttentionFunction):
        def forward(self, values, rows):
            total = rows.zero_padding(values).sum(2, keepdim=True)
            return (total / rows.lengths[:, None, None]).expand_as(values)

    yield MeanAttention
    del ATTENTION_REGISTRY["mean"]


def rows_of(*lengths):
    return Rows(lengths, max(lengths), torch.device("cpu"))


def test_registered_names():
    assert set(ATTENTION_REGISTRY) == {"csp", "softmax", "relu2", "laplace"}


def test_unknown_name():
    with pytest.raises(UserError, match="--attention is 'mean'; it must be one of csp, laplace"):
        attention_class("mean")


def test_name_that_is_taken():
    with pytest.raises(ValueError, match="named 'csp' is registered already"):
        register_attention("csp")(AttentionFunction)


def test_class_of_another_kind():
    with pytest.raises(ValueError, match="Linear must extend AttentionFunction"):
        register_attention("linear")(torch.nn.Linear)


def test_new_function_in_a_gated_unit(mean_attention):
    unit = GatedAttentionUnit(
        4, 6, 2, attention="mean", options=AttentionOptions(), hidden_dropout=0.0,
        relative_bias="simple", max_positions=9,
    )  # fmt: skip
    x = torch.randn(2, 4, 5)
    gate, values = torch.nn.functional.silu(
        x.transpose(1, 2) @ unit.proj.weight.T + unit.proj.bias
    ).chunk(2, dim=2)
    mixed = torch.stack([values[0].mean(0), values[1, :3].mean(0)])[:, None]
    expected = (gate * mixed) @ unit.out_proj.weight.T + unit.out_proj.bias
    torch.testing.assert_close(unit(x, rows_of(5, 3)).transpose(1, 2), expected)
    assert {name for name, _ in unit.named_parameters()} == {
        "proj.weight", "proj.bias", "out_proj.weight", "out_proj.bias",
    }  # fmt: skip


def test_new_function_in_a_transformer_layer(mean_attention):
    attention = ValueAttention(4, [mean_attention(AttentionOptions())])
    layer = TransformerEncoderLayer(
        attention, 4, 6, activation_fn="relu", dropout=0.0, hidden_dropout=0.0
    )
    x = torch.randn(5, 1, 4)
    alone = layer(x, rows_of(5))
    padded = torch.cat([x, torch.randn(2, 1, 4)])
    rows = Rows((5,), 7, torch.device("cpu"))
    torch.testing.assert_close(layer(padded, rows)[:5], alone)


@pytest.mark.parametrize("name", ["softmax", "relu2", "laplace"])
def test_rows_by_themselves(name):
    """Each row equals the formula on its valid part; what stands at its padding is not read."""
    torch.manual_seed(0)
    lengths, width, positions = (5, 1, 3), 4, 6
    attention = attention_class(name)(AttentionOptions())
    bias = SimpleRelativeBias(8)
    values, queries, keys = (torch.randn(3, channels, positions) for channels in (7, width, width))
    for row, n in enumerate(lengths):
        values[row, :, n:] = 1e6
        keys[row, :, n:] = 1e3
    rows = Rows(lengths, positions, torch.device("cpu"))
    found = attention(values, rows, queries, keys, bias)
    for row, n in enumerate(lengths):
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
    attention = attention_class(name)(AttentionOptions())
    values = torch.randn(2, 3, 4, requires_grad=True)
    queries = torch.randn(2, 2, 4, requires_grad=True)
    rows = Rows((4, 0), 4, torch.device("cpu"))
    out = attention(values, rows, queries, queries, None)
    out.sum().backward()
    assert out.isfinite().all()
    assert queries.grad.isfinite().all()


def test_attention_dropout():
    attention = attention_class("softmax")(AttentionOptions(dropout=0.5))
    torch.manual_seed(0)
    values, queries = torch.eye(200)[None], torch.randn(1, 4, 200)
    rows = rows_of(200)
    weights = attention(values, rows, queries, queries, None)
    assert 0.45 < (weights == 0).float().mean() < 0.55
    attention.eval()
    weights = attention(values, rows, queries, queries, None)
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 200))


def test_csp_options_are_checked_when_built():
    with pytest.raises(ValueError, match="shift is 'sideways'"):
        attention_class("csp")(AttentionOptions(csp_shift="sideways"))


def test_dropping_of_weights_on_a_cpu():
    """It has a path of its own there, which must give the same attention with little dropped."""
    torch.manual_seed(0)
    attention, rows = SelfAttention(12, 3, 1e-9), rows_of(7, 4)
    x = torch.randn(7, 2, 12)
    dropping = attention.train()(x, rows, 0)
    for row, length in enumerate(rows.host):
        alone = attention.eval()(x[:length, row : row + 1], rows_of(length), 0)
        torch.testing.assert_close(dropping[:length, row : row + 1], alone)
    attention.softmax.options = AttentionOptions(dropout=0.5)
    assert not torch.allclose(attention.train()(x, rows, 0), dropping)
