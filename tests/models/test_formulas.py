"""Models with every option against the formulas, in values and gradients."""

import itertools

import pytest
import torch

from benchmarks.naive import NaiveModel
from fairseq_csp.models import length_buckets
from tests.helpers.building import pixels, small, tokens

SCORES = ("softmax", "relu2", "laplace")
CSP = {"attention": "csp"}

MEGA_TEXT = {
    **{
        f"{fn}-{bias}-chunk{chunk}": {
            "attention_activation_fn": fn,
            "rel_pos_bias": bias,
            "chunk_size": chunk,
        }
        for fn, bias, chunk in itertools.product(SCORES, ("simple", "rotary"), (-1, 4))
    },
    **{
        f"{norm}-{'pre' if prenorm else 'post'}norm": {
            "norm_type": norm,
            "encoder_normalize_before": prenorm,
        }
        for norm, prenorm in itertools.product(("layernorm", "scalenorm", "rmsnorm"), (False, True))
    },
    "attention-overrides": {"attention": "laplace", "attention_activation_fn": "softmax"},
    "chunk-longer-than-rows": {"chunk_size": 20},
    "truncated": {"truncation_length": 3},
    "untruncated": {"truncation_length": 0},
    "untruncated-none": {"truncation_length": None},
    "untruncated-negative": {"truncation_length": -1},
    "normalized-embedding": {"normalize_embedding": True},
    "normalized-embedding-scalenorm": {"normalize_embedding": True, "norm_type": "scalenorm"},
    "cls": {"sen_rep_type": "cls"},
    "gelu": {"activation_fn": "gelu"},
    "feature-dropout": {"feature_dropout": True},
    "no-feed-forward": {"encoder_ffn_embed_dim": 0},
    "no-classifier-layer": {"classifier_layers": 0},
    "classifier-of-2-layers": {"classifier_layers": 2},
    "classes": {"sentence_class_num": 5},
    "csp": CSP,
    "csp-chunked": CSP | {"chunk_size": 4},
    "csp-chunked-linear": CSP | {"chunk_size": 5, "csp_shift": "linear"},
    **{
        f"csp-{shift}-{group}-{order}": CSP
        | {"csp_shift": shift, "csp_group_size": group, "csp_order": order}
        for shift, group, order in itertools.product(
            ("exponential", "linear", "none"), ("3", "full"), ("shift_sort", "sort_shift")
        )
    },
    "csp-descending": CSP | {"csp_descending": True},
}
FLASH_TEXT = {
    **{
        f"{fn}-{bias}": {"attention_activation_fn": fn, "rel_pos_bias": bias}
        for fn, bias in itertools.product(SCORES, ("simple", "rotary"))
    },
    **{norm: {"norm_type": norm} for norm in ("layernorm", "scalenorm", "rmsnorm")},
    "mp": {"sen_rep_type": "mp"},
    "csp": CSP,
    "csp-full": CSP | {"csp_group_size": "full", "csp_shift": "none", "sen_rep_type": "mp"},
}
TRANSFORMER_TEXT = {
    "plain": {},
    "softmax-by-name": {"attention": "softmax"},
    "tied": {"tie_layer_weights": True, "encoder_layers": 3},
    "no-embedding-norm": {"encoder_normalize_before": False},
    "learned-positions": {"encoder_learned_pos": True},
    "mp": {"sen_rep_type": "mp"},
    "relu": {"activation_fn": "relu"},
    "1-head": {"encoder_attention_heads": 1},
    "ignores-score-function": {"attention_activation_fn": "laplace"},
    "csp": CSP,
    "csp-tied": CSP | {"tie_layer_weights": True, "encoder_layers": 3},
    "csp-linear-4": CSP | {"csp_shift": "linear", "csp_group_size": "4"},
}
LSTM_TEXT = {
    "cls": {"sen_rep_type": "cls"},
    "mp": {"sen_rep_type": "mp"},
    "1-layer": {"encoder_layers": 1},
}
TEXT = [
    pytest.param(f"{family}_lra_imdb", options, id=f"{family}-{name}")
    for family, cases in (
        ("mega", MEGA_TEXT),
        ("flash", FLASH_TEXT),
        ("transformer", TRANSFORMER_TEXT),
        ("lstm", LSTM_TEXT),
    )
    for name, options in cases.items()
]
IMAGE = [
    pytest.param(f"{family}_lra_pf32", options, id=f"{family}-{'-'.join(map(str, values))}")
    for family, cases in (
        (
            "mega",
            [
                {"norm_type": norm, "encoder_normalize_before": prenorm, "attention": attention}
                for norm, prenorm, attention in itertools.product(
                    ("batchnorm", "syncbatchnorm", "layernorm"), (True, False), ("laplace", "csp")
                )
            ]
            + [{"chunk_size": 6, "attention": fn} for fn in (*SCORES, "csp")]
            + [{"normalize_embedding": True}],
        ),
        (
            "flash",
            [
                {"norm_type": norm, "attention": attention}
                for norm, attention in itertools.product(
                    ("batchnorm", "syncbatchnorm", "scalenorm"), ("relu2", "csp")
                )
            ],
        ),
        ("transformer", [{}, {"encoder_learned_pos": True}, CSP]),
        ("lstm", [{"sen_rep_type": "mp"}, {"sen_rep_type": "cls"}]),
    )
    for options in cases
    for values in [options.values()]
]


def assert_equal_to_formula(model, found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    parameters = list(model.parameters())
    direction = torch.randn_like(expected)
    for gradients in zip(
        *(
            torch.autograd.grad(
                (out * direction).sum(), parameters, allow_unused=True, retain_graph=True
            )
            for out in (found, expected)
        ),
        strict=True,
    ):
        filled = [torch.zeros(1) if g is None else g for g in gradients]
        torch.testing.assert_close(
            *torch.broadcast_tensors(*filled), rtol=1e-4, atol=1e-5, check_dtype=False
        )


@pytest.mark.parametrize(("arch", "options"), TEXT)
def test_text(arch, options, monkeypatch):
    model = small(arch, **options).double().train()
    batch, lengths = tokens([5, 9, 1, 4])
    rows = [NaiveModel(model)(row[None, :n]) for row, n in zip(batch, lengths, strict=True)]
    # the last two are encoded together, the others alone
    monkeypatch.setattr(length_buckets, "PASS_COST", 3)
    assert length_buckets.length_buckets(lengths.tolist()) == [[1], [0, 3], [2]]
    assert_equal_to_formula(model, model(batch, lengths), torch.cat(rows))
    model.encoder.trim = False
    assert_equal_to_formula(model, model(batch, lengths), torch.cat(rows))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("arch", "options"), IMAGE)
def test_image(arch, options, training):
    model = small(arch, **options).double().train(training)
    batch, lengths = pixels(3, 12)
    batch = batch.double()
    expected = NaiveModel(model)(batch)
    assert_equal_to_formula(model, model(batch, lengths), expected)


@pytest.mark.parametrize("attention", ["softmax", "csp"])
@pytest.mark.parametrize("family", ["mega", "flash", "transformer"])
def test_two_documents(family, attention):
    model = small(f"{family}_lra_aan", documents=2, attention=attention).double()
    first, first_lengths = tokens([3, 9], seed=1)
    second, second_lengths = tokens([12, 5], seed=2)
    expected = torch.cat(
        [
            NaiveModel(model)(first[row : row + 1, :m], None, second[row : row + 1, :n])
            for row, (m, n) in enumerate(zip(first_lengths, second_lengths, strict=True))
        ]
    )
    found = model(first, first_lengths, second, second_lengths)
    assert_equal_to_formula(model, found, expected)
