"""A text example has the same logits alone and padded in a batch."""

import itertools

import pytest
import torch

from fairseq_csp.models import length_buckets
from tests.helpers.building import TEXT_TASKS, small, tokens

OWN = ("softmax", "relu2", "laplace")
CSP = [
    {
        "attention": "csp",
        "csp_shift": shift,
        "csp_group_size": group,
        "csp_order": order,
        "csp_descending": descending,
    }
    for shift, group, order, descending in itertools.product(
        ("exponential", "linear", "none"), ("2", "3", "full"), ("shift_sort", "sort_shift"), (0, 1)
    )
]
MIXED = [{"attention": name} for name in OWN] + CSP
MODELS = [
    *(("mega", {**mixed, "chunk_size": chunk}) for mixed in MIXED for chunk in (-1, 6)),
    *(("mega", {"norm_type": norm, "encoder_normalize_before": before})
      for norm in ("layernorm", "scalenorm", "rmsnorm") for before in (False, True)),
    ("mega", {"rel_pos_bias": "rotary"}),
    ("mega", {"normalize_embedding": True}),
    ("mega", {"sen_rep_type": "cls"}),
    ("mega", {"truncation_length": 4}),
    *(("flash", mixed) for mixed in MIXED),
    *(("flash", {"norm_type": norm, "sen_rep_type": pooling})
      for norm in ("layernorm", "scalenorm", "rmsnorm") for pooling in ("mp", "cls")),
    ("transformer", {}),
    ("transformer", {"sen_rep_type": "mp"}),
    ("transformer", {"encoder_learned_pos": True}),
    *(("transformer", mixed | {"tie_layer_weights": tied}) for mixed in CSP for tied in (0, 1)),
    ("transformer_rope", {}),
    ("transformer_rope", {"attention": "csp"}),
    ("lstm", {"sen_rep_type": "cls"}),
    ("lstm", {"sen_rep_type": "mp"}),
]  # fmt: skip
LENGTHS = [7, 1, 24, 13, 12, 2]


@pytest.mark.parametrize("keep_padding", [False, True], ids=["buckets", "padded"])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        pytest.param(family, options, id="-".join([family, *map(str, options.values())]))
        for family, options in MODELS
    ],
)
def test_alone_and_in_a_batch(family, options, keep_padding, monkeypatch):
    monkeypatch.setattr(length_buckets, "PASS_COST", 5)
    model = small(f"{family}_lra_imdb", keep_padding=keep_padding, **options).eval()
    batch, lengths = tokens(LENGTHS)
    # more padding than the longest row needs
    batch = torch.nn.functional.pad(batch, (0, 5), value=1)
    with torch.no_grad():
        together = model(batch, lengths)
        alone = torch.cat(
            [model(row[None, :n], n[None]) for row, n in zip(batch, lengths, strict=True)]
        )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    # and the rows do differ
    assert torch.cdist(alone, alone).add(torch.eye(len(alone)) * 9).min() > 1e-4


@pytest.mark.parametrize("keep_padding", [False, True], ids=["buckets", "padded"])
@pytest.mark.parametrize("family", ["mega", "flash", "transformer", "lstm"])
def test_two_documents(family, keep_padding):
    model = small(f"{family}_lra_aan", documents=2, keep_padding=keep_padding).eval()
    first, first_lengths = tokens([3, 20, 8], seed=1)
    second, second_lengths = tokens([9, 1, 30], seed=2)
    with torch.no_grad():
        together = model(first, first_lengths, second, second_lengths)
        for row, (m, n) in enumerate(zip(first_lengths, second_lengths, strict=True)):
            alone = model(first[row : row + 1, :m], None, second[row : row + 1, :n], None)
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", TEXT_TASKS)
@pytest.mark.parametrize("family", ["mega", "flash", "transformer", "lstm"])
def test_what_stands_at_padding_takes_no_part(family, task):
    model = small(f"{family}_lra_{task}", keep_padding=True).eval()
    batch, lengths = tokens([5, 9])
    other = batch.clone()
    other[0, 5:] = 7
    with torch.no_grad():
        torch.testing.assert_close(model(batch, lengths), model(other, lengths), rtol=0, atol=0)


@pytest.mark.parametrize("family", ["mega", "flash", "transformer"])
def test_layers_begin_with_zeros_at_padding(family):
    model = small(f"{family}_lra_imdb", keep_padding=True, encoder_normalize_before=True)
    seen = []
    model.encoder.encoder.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(*tokens([5, 9]))
    # (batch, channels, positions), or the transformer's (positions, batch, channels)
    x = seen[0].permute(1, 2, 0) if family == "transformer" else seen[0]
    assert (x[0, :, 5:] == 0).all()
    assert (x[0, :, :5] != 0).all()
