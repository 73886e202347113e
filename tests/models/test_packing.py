"""Rows of text are packed on a CPU where the encoder takes that, which changes no result."""

import pytest
import torch

from fairseq_csp.models import length_buckets
from fairseq_csp.models.lra import SHORT_ROWS
from fairseq_csp.modules.packing import PackedLengths
from tests.helpers.building import small, tokens
from tests.helpers.kernels import use_implementation

LENGTHS = [7, 1, 24, 13, 12, 2]


@pytest.fixture
def seen(monkeypatch):
    """The packed lengths that modules were called with, where there are kernels."""
    use_implementation("native", monkeypatch)
    calls = []
    forward = torch.nn.Module.__call__

    def call(module, *inputs, **named):
        calls.extend(x for x in inputs if isinstance(x, PackedLengths))
        return forward(module, *inputs, **named)

    monkeypatch.setattr(torch.nn.Module, "__call__", call)
    monkeypatch.setattr(length_buckets, "PASS_COST", 5)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("mega", {}),
        ("mega", {"csp_group_size": "3", "csp_order": "sort_shift", "csp_descending": True}),
        ("mega", {"csp_group_size": "full", "csp_shift": "linear"}),
        ("mega", {"sen_rep_type": "cls", "norm_type": "layernorm", "normalize_embedding": True}),
        ("mega", {"ema": "complex", "truncation_length": 4}),
        ("flash", {}),
        ("flash", {"csp_group_size": "full", "norm_type": "layernorm"}),
        ("transformer", {}),
        ("transformer", {"encoder_learned_pos": True, "tie_layer_weights": True}),
        ("mega", {"attention": "softmax"}),
        ("mega", {"attention": "relu2", "rel_pos_bias": "rotary"}),
        ("mega", {"attention": "linear"}),
        ("flash", {"attention": "laplace"}),
        ("flash", {"attention": "fnet"}),
        ("transformer", {"csp_group_size": "8", "sen_rep_type": "mp"}),
        ("transformer_rope", {"csp_group_size": "3"}),
    ],
    ids=str,
)
def test_equals_padded_rows(family, options, dtype, seen):
    results = []
    for keep_padding in (False, True):
        arch = f"{family}_lra_imdb"
        model = small(arch, keep_padding=keep_padding, **{"attention": "csp", **options})
        model.to(dtype).train()
        logits = model(*tokens(LENGTHS))
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
        assert bool(seen) is not keep_padding
        seen.clear()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 5e-2}[dtype]
    for found, expected in zip(*results, strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(scale, 1))


def test_each_row_has_a_dropout_of_its_own(seen):
    model = small("mega_lra_imdb", attention="csp", dropout=0.5).train()
    batch, lengths = tokens([9, 9, 9, 4])
    batch[1] = batch[0]
    logits = model(batch, lengths)
    assert seen
    assert not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize(
    ("attention", "lengths", "packed"),
    [
        ("csp", [5, 4], True),
        ("csp", [5, 5], True),
        ("csp", [SHORT_ROWS] * 2, True),
        ("csp", [SHORT_ROWS + 1] * 2, False),
        ("softmax", [5, 4], True),
        ("softmax", [5, 5], False),
    ],
)
def test_rows_are_packed_where_some_are_padded_or_all_are_short(attention, lengths, packed, seen):
    model = small("mega_lra_imdb", attention=attention, max_positions=600).eval()
    model(*tokens(lengths))
    assert bool(seen) is packed


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("mega", {"attention": "csp", "chunk_size": 6}),
        ("mega", {"attention": "csp", "feature_dropout": True}),
        ("mega", {"attention": "csp", "keep_padding": True}),
        ("transformer", {"attention": "softmax"}),
        ("transformer", {"attention": "csp", "csp_group_size": "full"}),
        ("transformer_rope", {"attention": "linformer"}),
    ],
)
def test_what_knows_of_rows_gets_rows(family, options, seen):
    model = small(f"{family}_lra_imdb", **options).eval()
    model(*tokens([5, 4]))
    assert not seen


def test_without_kernels_rows_go_in_buckets(seen, monkeypatch):
    use_implementation("reference", monkeypatch)
    small("mega_lra_imdb", attention="csp").eval()(*tokens(LENGTHS))
    assert not seen


def test_every_position_passes_once(seen):
    model = small("mega_lra_imdb", attention="csp").eval()
    shapes = []
    for layer in model.encoder.encoder.layers:
        layer.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    model(*tokens(LENGTHS))
    assert shapes == [(1, 8, sum(LENGTHS))] * 2
