"""The loss with and without label smoothing, against its formula."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fairseq_csp.criterions.lra_cross_entropy import LRACrossEntropyCriterion
from tests.helpers.generated import write_text
from tests.helpers.running import TINY, train

TARGET = torch.tensor([[2], [0]])
LOGITS = torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.0, -1.0]])


class Given(nn.Module):
    """A model whose logits are given."""

    def forward(self, logits):
        return logits


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_formula(smoothing, training):
    model = Given().train(training)
    sample = {"net_input": {"logits": LOGITS}, "target": TARGET, "ntokens": 6}
    criterion = LRACrossEntropyCriterion(SimpleNamespace(), smoothing)
    loss, size, _ = criterion(model, sample)
    share = smoothing if training else 0.0
    expected = 0.0
    for row, target in zip(LOGITS.tolist(), TARGET.view(-1).tolist(), strict=True):
        total = math.log(sum(map(math.exp, row)))
        for number, logit in enumerate(row):
            wanted = share / 3 + (1 - share) * (number == target)
            expected += wanted * (total - logit)
    assert size == 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_as_a_flag(tmp_path):
    data = write_text(tmp_path / "data")
    words = [*TINY, "--task", "lra-text", "--arch", "mega_lra_imdb", "--label-smoothing", "0.1"]
    state = train(data, tmp_path / "save", *words, updates=1)
    assert state["cfg"]["criterion"]["label_smoothing"] == 0.1
