"""The attention maps that are drawn are what the layers did."""

import pytest
import torch

from fairseq_csp.analysis.maps import attention_maps, chosen
from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import AttentionFunction
from fairseq_csp.modules.transformer_layer import MultiHeadAttention
from tests.helpers.building import small, tokens

SAMPLE = {"net_input": dict(zip(("src_tokens", "src_lengths"), tokens([11]), strict=True))}
MODELS = [
    *(("mega", {"attention": name}) for name in ("softmax", "relu2", "laplace", "csp")),
    ("mega", {"attention": "csp", "csp_shift": "linear", "csp_group_size": "3"}),
    ("mega", {"attention": "csp", "csp_order": "sort_shift", "csp_descending": True}),
    ("flash", {"rel_pos_bias": "rotary", "attention": "softmax"}),
    ("transformer", {"attention": "csp", "tie_layer_weights": True}),
]


@pytest.mark.parametrize(("family", "options"), MODELS, ids=str)
def test_maps_turn_values_into_what_came_out(family, options):
    model = small(f"{family}_lra_listop", **options).eval()
    values_and_outputs = []
    for module in model.modules():
        if isinstance(module, AttentionFunction):
            module.register_forward_hook(
                lambda module, inputs, output: values_and_outputs.append((inputs[0], output))
            )
    maps = attention_maps(model, SAMPLE)
    # the maps of score functions are taken by one more call, which stands last
    assert len(maps) == 2
    for layer, (values, output) in zip(maps, values_and_outputs[:2], strict=True):
        expected = torch.einsum(
            "cij,cj->ci", layer.weights.expand(values.size(1), -1, -1), values[0]
        )
        torch.testing.assert_close(expected, output[0])
        assert layer.weights.shape[1:] == (11, 11)
        if options["attention"] in ("softmax", "csp"):
            torch.testing.assert_close(layer.weights.sum(2), torch.ones(len(layer.weights), 11))


def test_heads_of_the_transformer_turn_values_into_what_came_out():
    model = small("transformer_lra_listop").eval()
    seen = []
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            module.register_forward_hook(
                lambda module, x, output: seen.append((module, x[0], output))
            )
    maps = attention_maps(model, SAMPLE)
    for layer, (module, x, output) in zip(maps, seen, strict=True):
        assert layer.kind == "head"
        values = module.v_proj(x)[:, 0].unflatten(1, (2, -1))
        mixed = torch.einsum("hij,jhc->ihc", layer.weights, values).flatten(1)
        torch.testing.assert_close(module.out_proj(mixed), output[:, 0])


def test_some_channels_and_the_mean_of_all_are_chosen():
    model = small("mega_lra_listop", attention="csp").eval()
    layer = attention_maps(model, SAMPLE)[0]
    found = dict(chosen(layer, [0, 7]))
    assert list(found) == ["channel 0", "channel 7", "mean of 12 channels"]
    assert torch.equal(found["channel 7"], layer.weights[7])
    assert torch.equal(found["mean of 12 channels"], layer.weights.mean(0))
    with pytest.raises(UserError, match="no channel 12: they are 0 to 11"):
        list(chosen(layer, [12]))


def test_a_model_without_attention_is_refused():
    with pytest.raises(UserError, match="no attention function"):
        attention_maps(small("lstm_lra_listop").eval(), SAMPLE)
