"""Luna: the Transformer's form against golden files and by hand, and the form of one layer."""

import copy
import json

import numpy as np
import pytest
import torch

from fairseq_csp import build_attention
from fairseq_csp.errors import UserError
from tests.helpers.building import small, tokens
from tests.helpers.commands import ROOT, train
from tests.mixers.rows import assert_equal_to_formula, rows_of


@pytest.mark.parametrize("name", ["luna_tied", "luna_padded"])
def test_golden(name):
    with np.load(ROOT / "tests" / "golden" / "mixers" / "carried" / f"{name}.npz") as file:
        raw = {key: torch.from_numpy(file[key]) for key in file if file[key].dtype.kind in "if"}
        options = json.loads(str(file["options"]))
    x = raw["in.x"].transpose(1, 2).clone()
    for row, n in enumerate(raw["lengths"]):
        x[row, n:] = torch.nan
    x.requires_grad_()
    layer = build_attention(
        "luna", value_dim=x.size(2), heads=options["heads"], carried=True, layer=1, num_layers=2,
        size=options["projection_length"], untied=not options["tie_kv"],
    ).double()  # fmt: skip
    layer.load_state_dict(
        {key.removeprefix("param."): value for key, value in raw.items() if "_proj." in key
         and key.startswith("param.")}
    )  # fmt: skip
    stream = raw["param.P"].clone().requires_grad_()
    out, update = layer(x, raw["lengths"], stream)
    assert (update - raw["param.packed"]).abs().max() < 1e-10
    out = out.transpose(1, 2)
    assert (out - raw["out"]).abs().max() < 1e-10
    (out * raw["grad_out"]).sum().backward()
    found = {f"grad.param.{key}": p.grad for key, p in layer.named_parameters()}
    found |= {"grad.param.P": stream.grad, "grad.in.x": x.grad.transpose(1, 2)}
    for key, expected in raw.items():
        if key.startswith("grad."):
            assert (found[key] - expected).abs().max() < 1e-10, key


def attend(q, k, v, heads):
    parts = zip(*(x.chunk(heads, 1) for x in (q, k, v)), strict=True)
    return torch.cat([(a @ b.T / a.size(1) ** 0.5).softmax(1) @ c for a, b, c in parts], 1)


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_carried_form_row_by_row(untied, first):
    counts = (7, 1, 4)
    layer = build_attention(
        "luna", value_dim=8, heads=2, carried=True, layer=1 - first, num_layers=2, size=3,
        untied=untied,
    ).double()  # fmt: skip
    assert sum(p.numel() for p in layer.parameters()) == (7 if untied else 5) * 72 + 24 * first
    (x,) = rows_of(7, [8], rows=3)
    stream = None if first else rows_of(3, [8], rows=3, seed=1)[0]
    out, update = layer(x, torch.tensor(counts), stream)
    for row, n in enumerate(counts):
        own, p = x[row, :n], layer.packed + layer.positions if first else stream[row]
        if untied:
            keys, values, second = layer.pk_proj(own), layer.pv_proj(own), layer.k_proj
            third = layer.v_proj
        else:
            keys = values = layer.pc_proj(own)
            second = third = layer.c_proj
        u = attend(layer.pq_proj(p), keys, values, 2)
        y = layer.out_proj(attend(layer.q_proj(own), second(u), third(u), 2))
        torch.testing.assert_close(update[row], u, rtol=0, atol=1e-12)
        torch.testing.assert_close(out[row, :n], y, rtol=0, atol=1e-12)
    assert out[1, 1:].eq(0).all()
    copied = copy.deepcopy(layer)(x, torch.tensor(counts), stream)[0]
    assert copied.equal(out)


def test_layer_form_by_hand():
    def formula(q, k, v, bias, attention, head):
        packed = attention.packed[:, head * 4 : head * 4 + 4]
        seen = (packed @ k.T / 2).softmax(1)
        return (q @ (seen @ k).T / 2).softmax(1) @ seen @ v

    assert_equal_to_formula("luna", formula, size=3)


def test_constants_are_kept_and_one_vector_gives_all_positions_the_same():
    q, k, v = rows_of(6, [4, 4, 3])
    layer = build_attention("luna", value_dim=3, query_dim=4, size=5).double()
    one = torch.ones_like(v)
    torch.testing.assert_close(layer(one, None, q, k), one, rtol=0, atol=1e-12)
    assert sum(p.numel() for p in layer.parameters()) == 5 * 4
    out = build_attention("luna", value_dim=3, query_dim=4, size=1).double()(v, None, q, k)
    torch.testing.assert_close(out, out[:, :1].expand_as(out), rtol=0, atol=1e-12)


MODELS = [
    ("transformer", {}),
    ("transformer", {"tie_layer_weights": True}),
    ("transformer", {"encoder_layers": 1, "luna_untied": True}),
    ("transformer_rope", {}),
    ("mega", {"chunk_size": 4}),
    ("flash", {}),
]


@pytest.mark.parametrize(("family", "options"), MODELS, ids=str)
def test_models_carry_the_stream(family, options):
    """Each row as if alone, and no parameter without a gradient."""
    model = small(f"{family}_lra_imdb", attention="luna", luna_size=3, keep_padding=True, **options)
    batch, lengths = tokens([12, 1, 7])
    together = model.eval()(batch, lengths)
    alone = torch.cat(
        [model(row[None, :n], n[None]) for row, n in zip(batch, lengths, strict=True)]
    )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    together.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.ne(0).any(), name


def test_the_stream_goes_from_layer_to_layer():
    """The second layer sees what the first packed, normalised, in the published order."""
    model = small("transformer_lra_imdb", attention="luna", luna_size=3).eval()
    first, second = model.encoder.encoder.layers
    seen = {}
    for name, layer in (("first", first), ("second", second)):
        layer.self_attn.register_forward_hook(
            lambda _, inputs, out, name=name: seen.update({name: (inputs[2], out[1])})
        )
    model(*tokens([9, 5]))
    start = first.self_attn.packed + first.self_attn.positions
    assert seen["first"][0].equal(start.expand(1, -1, -1).expand_as(seen["first"][0]))
    expected = first.stream_layer_norm(seen["first"][0] + seen["first"][1])
    torch.testing.assert_close(seen["second"][0], expected)
    assert not hasattr(second, "stream_layer_norm")


def test_training_through_the_command(tiny_listops, tmp_path):
    flags = ["--arch", "transformer_lra_listop", "--attention", "luna", "--luna-size", "4"]
    log = train(tiny_listops, tmp_path, *flags, "--max-update", "2")
    assert "CarriedLuna" in log


def test_bad_options():
    with pytest.raises(UserError, match="--luna-size is 0; it must be at least 1"):
        build_attention("luna", value_dim=4, size=0)
    with pytest.raises(UserError, match="softmax has no form that carries a second stream"):
        build_attention("softmax", value_dim=4, carried=True)
