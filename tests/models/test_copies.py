"""Models are plain modules: they can be copied and pickled, and take an empty batch."""

import copy
import pickle

import pytest
import torch

from tests.helpers.building import FAMILIES, pixels, small, tokens

CELLS = [
    (family, attention, task)
    for family in FAMILIES
    for attention in (None, "csp")
    for task in ("imdb", "pf32")
    if (family, attention) != ("lstm", "csp")
]


@pytest.mark.parametrize(("family", "attention", "task"), CELLS)
def test_a_copy_gives_the_same(family, attention, task):
    model = small(f"{family}_lra_{task}", attention=attention).eval()
    source = tokens([5, 9, 1]) if task == "imdb" else pixels(3, 36)
    expected = model(*source)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied(*source).equal(expected)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize(("family", "attention", "task"), CELLS)
def test_an_empty_batch_gives_no_logits(family, attention, task, training):
    model = small(f"{family}_lra_{task}", attention=attention).train(training)
    dtype = torch.long if task == "imdb" else torch.float
    for lengths in (None, torch.zeros(0, dtype=torch.long)):
        logits = model(torch.zeros(0, 36, dtype=dtype), lengths)
        assert logits.shape == (0, 2)
    logits.sum().backward()
