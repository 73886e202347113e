"""The rotary Transformer against its formulas, one sequence and head at a time."""

import math

import pytest
import torch
import torch.nn.functional as F

from fairseq_csp.errors import UserError
from fairseq_csp.models.family import FAMILY_REGISTRY, can_take
from fairseq_csp.modules.attention import ATTENTION_REGISTRY
from fairseq_csp.modules.relative_bias import rotary_angles, rotate
from tests.helpers.building import small, tokens
from tests.mixers.entries import model_of


def turned(x, position):
    """One head's vector rotated by its position: pairs (t, t + half), angle p * 10000^(-t/half)."""
    half = len(x) // 2
    out = x.clone()
    for t in range(half):
        angle = position * 10000 ** (-t / half)
        out[t] = x[t] * math.cos(angle) - x[half + t] * math.sin(angle)
        out[half + t] = x[half + t] * math.cos(angle) + x[t] * math.sin(angle)
    return out


def encode(encoder, source, heads):
    x = encoder.embed_tokens(source)
    for layer in encoder.layers:
        attention, normed = layer.self_attn, layer.self_attn_layer_norm(x)
        q, k, v = (
            project(normed).unflatten(1, (heads, -1))
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = torch.zeros_like(v)
        for head in range(heads):
            rotated = [torch.stack([turned(y[n, head], n) for n in range(len(x))]) for y in (q, k)]
            scores = rotated[0] @ rotated[1].T / math.sqrt(v.size(2))
            mixed[:, head] = scores.softmax(1) @ v[:, head]
        x = x + attention.out_proj(mixed.flatten(1))
        x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
    return encoder.final_norm(x).mean(0)


def test_it_equals_the_formulas():
    model = small("transformer_rope_lra_imdb", encoder_layers=2).double().eval()
    batch, lengths = tokens([9, 4, 6])
    found = model.encoder(batch, lengths)
    for row, length in enumerate(lengths):
        expected = encode(model.encoder.encoder, batch[row, :length], heads=2)
        # the angles are float32
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-6)


def test_products_depend_on_the_distance_alone():
    torch.manual_seed(0)
    query, key = torch.randn(2, 6, dtype=torch.double)
    sine, cosine = (x.double() for x in rotary_angles(20, 6, query.device))
    queries, keys = (rotate(x.expand(20, -1), sine, cosine) for x in (query, key))
    products = queries @ keys.T
    for distance in (-7, 0, 3):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    assert not torch.allclose(products[0, 3], products[0, 4])


@pytest.mark.parametrize("name", sorted(ATTENTION_REGISTRY))
def test_every_function_sees_the_order(name):
    cls = ATTENTION_REGISTRY[name]
    if not can_take(FAMILY_REGISTRY["transformer_rope"], cls):
        pytest.skip("another family's")
    task = "cifar10" if cls.images_only else "imdb"
    # four heads of even width
    model = model_of("transformer_rope", task, name, encoder_embed_dim=16, max_positions=36)
    model = model.double().eval()
    source = torch.randn(1, 36).double() if task == "cifar10" else torch.arange(5, 20)[None, :]
    # neighbours inside a window, and others
    order = torch.arange(source.size(1))
    order[[1, 2, 6, 11]] = order[[2, 1, 11, 6]]
    with torch.no_grad():
        one, other = model(source), model(source[:, order])
    difference = (one - other).abs().max() / one.abs().max()
    assert difference > 1e-6


@pytest.mark.parametrize("name", ["softmax", "hilo", "luna", "gqa"])
def test_heads_of_odd_width_are_refused(name):
    message = "--encoder-attention-heads 2 does not cut 6 channels into heads of an even number"
    sizes = {"encoder_embed_dim": 6, "encoder_attention_heads": 2}
    with pytest.raises(UserError, match=message):
        small("transformer_rope_lra_imdb", attention=name, **sizes)
