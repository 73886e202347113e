"""Weights of an architecture's own attention load into its CSP variant."""

import logging

import pytest
import torch

from fairseq_csp.errors import UserError
from tests.helpers.building import small

H, D, Z = 12, 8, 6
DEAD = {
    # gamma, beta, z's rows of the joint projection, then the bias
    "mega": 2 * Z + 2 * Z + Z * D + Z,
    "flash": 2 * Z + 2 * Z + Z * D + Z,
    "transformer": 2 * (D * D + D),
}
BIAS = {"simple": 2 * 40 - 1, "rotary": 2 * Z}
KEPT_ROWS = {
    "mega": [*range(D), *range(D + Z, 2 * D + Z + H)],
    "flash": range(2 * H),
}


@pytest.mark.parametrize("prefix", ["", "model."], ids=["whole", "inside"])
@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("family", DEAD)
def test_dead_parts_are_dropped(family, bias, prefix, caplog):
    options = {"rel_pos_bias": bias, "encoder_layers": 2}
    own = small(f"{family}_lra_imdb", seed=1, **options)
    csp = small(f"{family}_lra_imdb", seed=2, attention="csp", **options)
    state = {prefix + name: value.clone() for name, value in own.state_dict().items()}
    with caplog.at_level(logging.INFO):
        csp.upgrade_state_dict_named(state, prefix.removesuffix("."))
    dead = 2 * (DEAD[family] + (0 if family == "transformer" else BIAS[bias]))
    assert [line for line in caplog.messages if line.startswith("dropped")] == [
        line for line in caplog.messages if f"dropped {dead:,} attention weights" in line
    ]
    assert len(caplog.messages) == 1
    csp.load_state_dict({name.removeprefix(prefix): value for name, value in state.items()})
    for name, value in csp.state_dict().items():
        expected = own.state_dict()[name]
        if ".mx_proj." in name or ".gau.proj." in name:
            expected = expected[list(KEPT_ROWS[family])]
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "attention"),
    [("mega", None), ("mega", "csp"), ("flash", None), ("flash", "csp"), ("transformer", None)]
    + [("transformer", "csp"), ("lstm", None)],
)
def test_own_weights_load_as_they_are(family, attention, caplog):
    model, other = (small(f"{family}_lra_imdb", seed=seed, attention=attention) for seed in (1, 2))
    with caplog.at_level(logging.INFO):
        other.load_state_dict(dict(model.state_dict()))
    assert not caplog.messages
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "options", "name"),
    [
        ("mega", {"rel_pos_bias": "rotary"}, "layers.0.mega_layer.rel_pos_bias._float_tensor"),
        ("transformer", {}, "embed_positions._float_tensor"),
    ],
)
def test_published_marker_is_no_weight(family, options, name):
    model = small(f"{family}_lra_imdb", **options)
    state = dict(model.state_dict()) | {f"encoder.encoder.{name}": torch.zeros(1)}
    model.load_state_dict(state)


def test_missing_weights_are_an_error():
    """Only what is dead is forgiven."""
    own, csp = (small("mega_lra_imdb", attention=attention) for attention in (None, "csp"))
    with pytest.raises(UserError, match=r"mx_proj\.weight has shape .* there and .* here"):
        own.load_state_dict(csp.state_dict())
    state = own.state_dict()
    del state["encoder.encoder.layers.0.mega_layer.h_proj.bias"]
    with pytest.raises(UserError, match=r"h_proj\.bias is missing there \(1 such"):
        csp.load_state_dict(state)
