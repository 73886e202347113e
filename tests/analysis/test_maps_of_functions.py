"""Maps of every attention function: what it did, or refused in a sentence."""

import pytest
import torch

from fairseq_csp.analysis import maps
from fairseq_csp.analysis.maps import attention_maps
from fairseq_csp.errors import UserError
from fairseq_csp.models.family import FAMILY_REGISTRY, can_take
from fairseq_csp.modules.attention import ATTENTION_REGISTRY, AttentionFunction, HeadAttention
from tests.helpers.building import pixels, small, tokens

SAMPLE = {"net_input": dict(zip(("src_tokens", "src_lengths"), tokens([11]), strict=True))}
IMAGE = {"net_input": {"src_tokens": pixels(1, 16)}}
CELLS = [
    (family.name, name)
    for family in FAMILY_REGISTRY.values()
    for name, cls in ATTENTION_REGISTRY.items()
    if can_take(family, cls) and not cls.images_only
]


def built(family, name):
    """A model with the function, and an example for it."""
    try:
        return small(f"{family}_lra_listop", attention=name).eval(), SAMPLE
    except UserError as error:
        assert "is for images" in str(error)
    model = small(f"{family}_lra_pf32", attention=name, max_positions=16, norm_type="layernorm")
    return model.eval(), IMAGE


def has_maps(name):
    return ATTENTION_REGISTRY[name].attention_map is not AttentionFunction.attention_map


@pytest.mark.parametrize(("family", "name"), [cell for cell in CELLS if has_maps(cell[1])])
def test_a_map_tells_what_the_function_did_with_its_values(family, name):
    model, sample = built(family, name)
    calls = []
    for module in model.modules():
        if isinstance(module, AttentionFunction):
            module.register_forward_hook(lambda *call: calls.append(call))
    found = attention_maps(model, sample)
    assert len(found) == len(calls) == 2
    for layer, (function, inputs, output) in zip(found, calls, strict=True):
        values = inputs[0][0]
        positions = values.size(1)
        assert layer.weights.shape[1:] == (positions, positions)
        if isinstance(function, HeadAttention):
            # its values are inside it
            torch.testing.assert_close(layer.weights.sum(2), torch.ones(layer.weights.shape[:2]))
            continue
        maps_of_channels = layer.weights.repeat_interleave(len(values) // len(layer.weights), 0)
        expected = torch.einsum("cij,cj->ci", maps_of_channels, values)
        torch.testing.assert_close(expected, output[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "name"), [cell for cell in CELLS if not has_maps(cell[1])])
def test_a_function_without_maps_is_refused(family, name):
    model, sample = built(family, name)
    with pytest.raises(UserError, match=f"--attention {name} has no attention map to draw"):
        attention_maps(model, sample)
    # nothing is left behind
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_without_attention_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    model = small("lstm_lra_listop").eval()
    monkeypatch.setattr(maps, "load", lambda checkpoint, data: (model, None))
    monkeypatch.setattr(maps, "example", lambda *arguments: (0, SAMPLE))
    picture = tmp_path / "maps.png"
    with pytest.raises(UserError, match="has no attention function"):
        maps.draw(picture, [tmp_path / "lstm.pt"], None, "test", 64, None, None, None)
    assert not picture.exists()
