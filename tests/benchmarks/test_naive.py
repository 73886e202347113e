"""The benchmarks' formulas give what the models give."""

import pytest
import torch

from benchmarks.models import random_sample
from benchmarks.naive import NaiveModel
from fairseq_csp.criterions.lra_cross_entropy import LRACrossEntropyCriterion
from fairseq_csp.parameters import SYMBOLS
from tests.helpers.building import small

LENGTH = 24
MODELS = [
    *(("mega_lra_imdb", {"attention": name}) for name in ("csp", "softmax", "relu2", "laplace")),
    ("mega_lra_imdb", {"attention": "csp", "truncation_length": 5}),
    ("mega_lra_imdb", {"attention": "csp", "truncation_length": 0}),
    ("mega_lra_listop", {"attention": "laplace"}),
    *(("mega_lra_cifar10", {"attention": "csp", "encoder_normalize_before": x}) for x in (0, 1)),
    *(("flash_lra_imdb", {"attention": name}) for name in ("csp", "relu2")),
    ("flash_lra_cifar10", {"attention": "csp"}),
    *(("transformer_lra_imdb", {"attention": name}) for name in ("csp", None)),
    ("transformer_lra_cifar10", {}),
]


def build(arch, options):
    model = small(arch, symbols=SYMBOLS["imdb"], **options)
    return model, random_sample(model, 3, LENGTH)


def logits_and_gradients(function, model, sample):
    model.zero_grad()
    kept = []

    def keep(**inputs):
        kept.append(function(**inputs))
        return kept[0]

    LRACrossEntropyCriterion(None)(keep, sample)[0].backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"logits": kept[0].detach()} | gradients


@pytest.mark.parametrize(("arch", "options"), MODELS, ids=str)
def test_naive_model_equals_model(arch, options):
    model, sample = build(arch, options)
    ours = logits_and_gradients(model, model, sample)
    theirs = logits_and_gradients(NaiveModel(model), model, sample)
    # a bias in front of a batch norm has no gradient but rounding
    rounding = 1e-6 * max(tensor.abs().max() for tensor in ours.values())
    for name, tensor in ours.items():
        error = (tensor - theirs[name]).abs().max()
        assert error <= 1e-4 * tensor.abs().max() + rounding, name


ATTENTIONS = {"mega": "softmax", "flash": "relu2", "transformer": "softmax"}


@pytest.mark.parametrize("family", ATTENTIONS)
@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 1.0},
        # the classifier would drop what the encoder gives
        {"dropout": 1.0, "classifier_layers": 0},
        {"attention_dropout": 1.0},
        {"act_dropout": 1.0},
    ],
    ids=str,
)
def test_naive_model_drops_where_the_model_does(family, options):
    # where a place is dropped whole, the model is a function again; the biases of layer norms keep
    # what comes behind it from being 0
    options = options | {"attention": ATTENTIONS[family], "norm_type": "layernorm"}
    model, sample = build(f"{family}_lra_imdb", options)
    inputs = sample["net_input"]
    torch.testing.assert_close(NaiveModel(model)(**inputs), model(**inputs))
