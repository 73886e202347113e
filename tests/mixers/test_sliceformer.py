"""Sliceformer is the sorting of every channel."""

from types import SimpleNamespace

import pytest
import torch

from fairseq_csp import build_attention
from fairseq_csp.errors import UserError
from fairseq_csp.models.lra import LRAModel
from tests.helpers.building import config, dictionary

TASK = SimpleNamespace(source_dictionary=dictionary(25), documents=1)


def test_channels_are_sorted():
    torch.manual_seed(0)
    values = torch.randn(3, 9, 4, dtype=torch.float64)
    counts = (9, 1, 6)
    values[1, 1:] = values[2, 6:] = torch.nan
    out = build_attention("sliceformer", value_dim=4)(values, torch.tensor(counts))
    for row, n in enumerate(counts):
        assert out[row, :n].equal(values[row, :n].sort(dim=0).values)
        assert out[row, n:].eq(0).all()


def test_same_as_csp_with_one_group():
    values = torch.randn(2, 7, 5)
    lengths = torch.tensor([7, 3])
    csp = build_attention("csp", value_dim=5, shift="none", group_size="full")
    out = build_attention("sliceformer", value_dim=5)(values, lengths)
    assert out.equal(csp(values, lengths))


def test_flags_of_csp_are_refused():
    with pytest.raises(UserError, match="--csp-shift cannot be given with --attention sliceformer"):
        LRAModel.build_model(
            config("mega_lra_imdb", attention="sliceformer", csp_shift="linear"), TASK
        )
    with pytest.raises(UserError, match="sliceformer has no option 'csp_shift'"):
        build_attention("sliceformer", value_dim=4, csp_shift="linear")
