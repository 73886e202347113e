"""What the rank of a trained model is measured on: every layer's output, all positions of it."""

import pytest
import torch

from fairseq_csp.analysis.collapse import residual_norm, stable_rank
from fairseq_csp.analysis.rank import layer_by_layer
from fairseq_csp.errors import UserError
from tests.helpers.building import small, tokens


def samples(*lengths):
    names = ("src_tokens", "src_lengths")
    return [{"net_input": dict(zip(names, tokens([length]), strict=True))} for length in lengths]


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("mega_lra_listop", {"attention": "csp"}),
        ("flash_lra_listop", {}),
        ("transformer_lra_listop", {"tie_layer_weights": True}),
        ("transformer_lra_listop", {"attention": "csp", "tie_layer_weights": False}),
        ("transformer_rope_lra_listop", {}),
    ],
)
def test_last_layer_is_what_is_pooled(arch, options):
    model = small(arch, **options).eval()
    pair = samples(11, 7)
    measured = layer_by_layer(model, pair)
    assert len(measured) == 3
    # one sample by itself: the layers called one after the other
    (alone, *_), (first, *_) = layer_by_layer(model, pair[:1]), measured
    assert alone != first
    pooled = []
    last = model.encoder.encoder.layers[-1]
    hook = last.register_forward_hook(lambda module, x, out: pooled.append(out))
    for sample in pair:
        model(**sample["net_input"])
    hook.remove()
    # where the layers share their weights, one is called twice
    outputs = pooled[1::2] if len(pooled) == 4 else pooled
    if arch.startswith("transformer"):
        vectors = torch.cat([out[:, 0] for out in outputs])
    else:
        vectors = torch.cat([out[0].T for out in outputs])
    assert vectors.size(0) == 18
    expected = residual_norm(vectors.double()), stable_rank(vectors.double())
    assert measured[-1] == pytest.approx(expected)


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(UserError, match="LSTMEncoder, which has no layers of positions"):
        layer_by_layer(small("lstm_lra_listop").eval(), samples(5))
