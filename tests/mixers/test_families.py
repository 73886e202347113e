"""Every attention function in every family that can take it: one step on text and on images."""

import itertools

import pytest
import torch

from fairseq_csp.errors import UserError
from fairseq_csp.models.family import FAMILY_REGISTRY, can_take
from fairseq_csp.modules.attention import ATTENTION_REGISTRY, HeadAttention
from tests.helpers.building import pixels, small, tokens

# most default numbers suit rows of thousands; and luna has another form in the Transformer
FEW = {
    "linformer_size": 4, "performer_features": 6, "kernel_rpe_features": 4, "nystrom_landmarks": 3,
    "nystrom_conv": 3, "agent_tokens": 4, "local_window": 2, "longformer_window": 2,
    "bigbird_window": 2, "s4d_state": 4, "biformer_regions": 3, "encoder_attention_heads": 4,
}  # fmt: skip
SIDE = 6


PAIRS = [
    (family, name)
    for (family, member), (name, cls) in itertools.product(
        sorted(FAMILY_REGISTRY.items()), sorted(ATTENTION_REGISTRY.items())
    )
    if can_take(member, cls)
]


def arch_of(family, task):
    return next(arch for arch in FAMILY_REGISTRY[family].architectures if arch.endswith(task))


def assert_one_step(model, *inputs):
    """Loss and gradients are finite, and every parameter gets a gradient."""
    logits = model(*inputs)
    torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)) % 2).backward()
    assert logits.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_text(family, name):
    arch = arch_of(family, "imdb")
    if name == "spectral":
        with pytest.raises(UserError):
            small(arch, attention=name, **FEW)
        return
    model = small(arch, attention=name, **FEW).eval()
    source, lengths = tokens([12, 30, 7, 1])
    assert_one_step(model, source, lengths)
    with torch.no_grad():
        together = model(source, lengths)
        for row, n in enumerate(lengths):
            alone = model(source[row : row + 1, :n], lengths[row : row + 1])
            torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_images(family, name):
    options = FEW | {"norm_type": "layernorm", "max_positions": SIDE**2}
    if family not in ("mega", "flash"):
        options.pop("norm_type")
    model = small(arch_of(family, "pf32"), attention=name, **options).eval()
    images, lengths = pixels(3, SIDE**2)
    assert_one_step(model, images, lengths)


@pytest.mark.parametrize("name", [name for family, name in PAIRS if family == "mega"])
def test_chunks(name):
    """The last chunk of a row may be short, or empty."""
    options = FEW | {"chunk_size": 8}
    if name == "spectral":
        return
    model = small("mega_lra_imdb", attention=name, **options).eval()
    source, lengths = tokens([24, 11, 3])
    assert_one_step(model, source, lengths)
    model.double()
    with torch.no_grad():
        together = model(source, lengths)
        alone = model(source[2:, :3], lengths[2:])
    torch.testing.assert_close(together[2], alone[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", sorted(ATTENTION_REGISTRY))
@pytest.mark.parametrize("family", ["mega", "flash"])
def test_those_that_replace_a_layer_are_refused_elsewhere(family, name):
    if not issubclass(ATTENTION_REGISTRY[name], HeadAttention):
        return
    message = f"--attention {name} cannot be used in {family}; it takes .*softmax"
    with pytest.raises(UserError, match=message):
        small(f"{family}_lra_imdb", attention=name)
