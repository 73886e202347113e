"""Every attention function in every family that takes it: rows by themselves, nothing dead."""

import pytest
import torch

from fairseq_csp.errors import UserError
from fairseq_csp.models.family import FAMILY_REGISTRY, can_take
from fairseq_csp.modules.attention import ATTENTION_REGISTRY, HeadAttention
from tests.helpers.building import pixels, tokens
from tests.mixers.entries import model_of

PLACED = [
    (family, name)
    for family, member in sorted(FAMILY_REGISTRY.items())
    for name, cls in sorted(ATTENTION_REGISTRY.items())
    if can_take(member, cls)
]


def assert_alive(model, logits):
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("family", "name"),
    [(f, name) for f, name in PLACED if not ATTENTION_REGISTRY[name].images_only],
    ids=lambda value: value,
)
def test_text(family, name):
    """In chunks too, of which some hold padding alone."""
    chunks = {"chunk_size": 8} if family == "mega" else {}
    model = model_of(family, "imdb", name, **chunks).eval()
    batch, lengths = tokens([13, 1, 7])
    together = model(torch.nn.functional.pad(batch, (0, 3), value=1), lengths)
    alone = [model(row[None, :n], n[None]) for row, n in zip(batch, lengths, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)
    assert torch.cdist(together, together).add(torch.eye(3) * 9).min() > 1e-4
    assert_alive(model, together)


@pytest.mark.parametrize(("family", "name"), PLACED, ids=lambda value: value)
def test_images_in_bfloat16(family, name):
    model = model_of(family, "cifar10", name, max_positions=36).bfloat16().train()
    images, lengths = pixels(2, 36)
    logits = model(images.bfloat16(), lengths)
    assert logits.isfinite().all()
    assert_alive(model, logits.float())


@pytest.mark.parametrize("family", ["mega", "flash"])
@pytest.mark.parametrize(
    "name", sorted(n for n, cls in ATTENTION_REGISTRY.items() if issubclass(cls, HeadAttention))
)
def test_what_replaces_a_layer_is_refused_in_gated_ones(family, name):
    message = f"--attention {name} cannot be used in {family}; it takes .*softmax"
    with pytest.raises(UserError, match=message):
        model_of(family, "imdb", name)
