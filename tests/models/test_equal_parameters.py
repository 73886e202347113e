"""The ablation of attention compares models of as many parameters."""

import pytest

from fairseq_csp.ablations import ABLATIONS
from tests.helpers.building import build


def test_csp_has_as_many_parameters_as_softmax():
    variant = ABLATIONS["attention"]["csp-equal-parameters"]
    flag, channels = variant.flags
    assert flag == "--encoder-hidden-dim"
    csp = build("mega_lra_listop", attention=variant.attention, encoder_hidden_dim=int(channels))
    softmax = build("mega_lra_listop", attention="softmax")
    counts = [sum(p.numel() for p in model.parameters()) for model in (csp, softmax)]
    assert counts == [601_614, 602_658]
    assert counts[0] == pytest.approx(counts[1], rel=0.002)
