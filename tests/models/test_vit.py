"""The Vision Transformer gives the published numbers, and takes what the published one cannot."""

import json
import logging
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fairseq_csp.errors import UserError
from fairseq_csp.models.vit import ARCHITECTURES, Mixing, ViTConfig, ViTModel
from fairseq_csp.modules.attention import ATTENTION_REGISTRY
from tests.helpers.commands import ROOT

GOLDEN = Path(__file__).parent.parent / "golden" / "vit"
STEPS = ["vit_csp_mean", "vit_trans_cls", "vit_trans_mean"]
TRAJECTORY = GOLDEN / "vit_trajectory_trans.npz"
TINY = {
    "image_size": 8,
    "patch_size": 2,
    "encoder_layers": 2,
    "encoder_embed_dim": 8,
    "encoder_ffn_embed_dim": 12,
    "encoder_attention_heads": 2,
    "head_dim": 6,
}

torch.set_num_threads(1)


def numbers(arrays, kind):
    return {
        name.removeprefix(f"{kind}/"): torch.tensor(arrays[name])
        for name in arrays.files
        if name.startswith(f"{kind}/")
    }


def build(**options):
    torch.manual_seed(0)
    return ViTModel(ViTConfig(**options))


@pytest.fixture(scope="module", params=STEPS)
def step(request):
    """A golden file, and a model of its options and weights after a step backward."""
    arrays = np.load(GOLDEN / f"{request.param}.npz")
    options = json.loads(str(arrays["meta"]))
    own = {field.name for field in fields(ViTConfig)}
    model = build(**{name: value for name, value in options.items() if name in own})
    state = numbers(arrays, "param")
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state)
    mixed = []
    for module in model.modules():
        if isinstance(module, Mixing):
            module.to_out.register_forward_pre_hook(lambda _, x: mixed.append(x[0].detach()))
    inputs = numbers(arrays, "in")
    logits = model(inputs["src_tokens"])
    loss = F.cross_entropy(logits, inputs["target"], reduction="sum")
    loss.backward()
    return arrays, model, logits, loss, mixed


def test_forward(step):
    arrays, model, logits, loss, mixed = step
    np.testing.assert_allclose(logits.detach(), arrays["out/logits"], rtol=0, atol=1e-5)
    assert loss.item() == pytest.approx(float(arrays["out/loss"]), abs=1e-5)
    for layer, out in enumerate(mixed):
        if f"mix/{layer}/out" in arrays.files:
            np.testing.assert_allclose(out, arrays[f"mix/{layer}/out"], rtol=0, atol=1e-5)
    assert model.tokens == json.loads(str(arrays["meta"]))["tokens"]


def test_gradients(step):
    arrays, model, *_ = step
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    expected = numbers(arrays, "grad")
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=1e-4, err_msg=name)


def trajectory():
    """The file, a model of its first weights, and its normalised images."""
    arrays = np.load(TRAJECTORY)
    meta = json.loads(str(arrays["meta"]))
    words = meta["published"]
    model = build(
        image_size=words["size"],
        patch_size=words["ps"],
        encoder_layers=words["n_layers"],
        encoder_embed_dim=words["dim"],
        encoder_ffn_embed_dim=words["mlp_dim"],
        encoder_attention_heads=words["n_heads"],
        head_dim=words["dim_head"],
        dropout=0.0,
        embedding_dropout=0.0,
    )
    model.load_state_dict(numbers(arrays, "start"))
    images = torch.tensor(arrays["in/images"]) / 255
    images = (images - torch.tensor(meta["mean"])) / torch.tensor(meta["std"])
    return arrays, meta, model, images.permute(0, 3, 1, 2)


def test_sixty_updates():
    arrays, meta, model, images = trajectory()
    labels = torch.tensor(arrays["in/labels"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, meta["lr"], meta["betas"], meta["eps"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, meta["updates"])
    losses = []
    for _ in range(meta["updates"]):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, arrays["out/losses"], rtol=0, atol=1e-4)
    for name, value in model.state_dict().items():
        np.testing.assert_allclose(value, arrays[f"end/{name}"], rtol=0, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    ("architecture", "changed", "attention", "csp"),
    [
        ("vit_cifar10", {}, 9_523_722, 6_377_994),
        ("vit_cifar10", {"patch_size": 2}, 9_603_594, 6_457_866),
        ("vit_cifar10_wide", {}, 15_815_178, 9_523_722),
        ("vit_cifar100", {}, 9_649_764, 6_504_036),
        ("vit_cifar100", {"patch_size": 4}, 9_569_892, 6_424_164),
        ("vit_mnist", {}, 9_568_778, 6_423_050),
        ("vit_cifar_small", {}, 1_803_082, 1_360_714),
        ("vit_tiny_imagenet", {}, 21_475_400, 17_936_456),
        ("vit_imagenet", {}, 22_036_840, 18_497_896),
    ],
)
def test_parameters(architecture, changed, attention, csp):
    for name, expected in (("softmax", attention), ("csp", csp)):
        with torch.device("meta"):
            model = ViTModel(ViTConfig(attention=name, **ARCHITECTURES[architecture] | changed))
        assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("pooling", ["mp", "max", "cls"])
@pytest.mark.parametrize("attention", ["csp", "softmax"])
@pytest.mark.parametrize("size", [8, 2, (4, 6), "4x6"], ids=str)
def test_every_size_and_pooling(attention, pooling, size):
    options = TINY | {"image_size": size, "attention": attention, "sen_rep_type": pooling}
    model = build(**options)
    height, width = model.image_size
    assert model.tokens == height * width // 4 + (pooling == "cls")
    images = torch.randn(3, 3, height, width)
    logits = model(images)
    assert logits.shape == (3, 10)
    logits.square().sum().backward()
    # cls_token is trained only where it takes part, so that no update has unused parameters
    unused = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not unused
    assert model.cls_token.requires_grad == (pooling == "cls")
    # an image's logits do not hang on the others in its batch
    model.eval()
    torch.testing.assert_close(model(images[:1]), model(images)[:1])


def test_a_single_head_of_the_models_width_has_no_output_map():
    model = build(**TINY | {"encoder_attention_heads": 1, "head_dim": 8})
    assert not [name for name in model.state_dict() if "to_out" in name]
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_initialisation_is_pytorchs_with_normal_positions():
    model = build(image_size=32, patch_size=2)
    for parameter in (model.pos_embedding, model.cls_token):
        assert parameter.std().item() == pytest.approx(1, abs=0.1)
    weight = model.transformer.layers[0][1].fn.net[0].weight
    assert weight.abs().max().item() == pytest.approx(512**-0.5, rel=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "--patch-size 3x3 does not divide images of 8x8 pixels"),
        ({"patch_size": 0}, "--patch-size is 0; it must be a number of pixels"),
        ({"patch_size": "2x"}, "--patch-size is 2x; it must be a number"),
        ({"image_size": (8, 8, 8)}, "--image-size is .* it must be a number"),
        ({"attention": "swd"}, "--attention is 'swd'; it must be one of .*csp"),
        ({"attention": "csp", "csp_group_size": 0}, "--csp-group-size is '0'"),
        ({"sen_rep_type": "first"}, "--sen-rep-type is 'first'; it must be one of mp, cls, max"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_one_sentence_about_a_wrong_option(options, message):
    with pytest.raises(UserError, match=message):
        build(**TINY | options)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"images must be \(batch, 3, 8, 8\), got \(2, 3, 8, 4\)"):
        build(**TINY)(torch.randn(2, 3, 8, 4))


def test_fairseq_is_not_imported():
    code = """
import sys, torch
from fairseq_csp.models.vit import ViTConfig, ViTModel
from fairseq_csp.modules.attention import ATTENTION_REGISTRY
ViTModel(ViTConfig(image_size=8, patch_size=4, attention="csp"))(torch.randn(1, 3, 8, 8))
sys.exit("fairseq" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("attention", ["csp", "softmax"])
def test_attention_weights_load_into_csp_by_their_values_rows(attention, caplog):
    attentive = build(**TINY | {"attention": "softmax"})
    torch.manual_seed(1)
    model = ViTModel(ViTConfig(**TINY | {"attention": attention}))
    with caplog.at_level(logging.INFO):
        model.load_state_dict(attentive.state_dict())
    # two layers of 2 A D numbers
    dead = [f"dropped {2 * 2 * 12 * 8} attention weights that csp lacks"]
    assert caplog.messages == (dead if attention == "csp" else [])
    for name, value in model.state_dict().items():
        expected = attentive.state_dict()[name]
        if attention == "csp" and name.endswith("to_qkv.weight"):
            expected = expected[24:]
        assert torch.equal(value, expected)


def test_weights_of_another_size_are_named():
    model = build(**TINY)
    state = dict(model.state_dict()) | {"cls_token": torch.zeros(1, 1, 9)}
    with pytest.raises(UserError, match=r"cls_token has shape \(1, 1, 9\) there and \(1, 1, 8\)"):
        model.load_state_dict(state)


@pytest.mark.parametrize("pooling", ["mp", "cls"])
@pytest.mark.parametrize("name", sorted(ATTENTION_REGISTRY))
def test_every_registered_function(name, pooling):
    """One that cannot be used says so; the others train."""
    try:
        model = build(**TINY | {"attention": name, "sen_rep_type": pooling, "head_dim": 4})
    except UserError as error:
        assert f"--attention {name}" in str(error) or f"--{name.replace('_', '-')}-" in str(error)
        return
    logits = model(torch.randn(2, 3, 8, 8))
    logits.square().sum().backward()
    assert logits.shape == (2, 10) and logits.isfinite().all()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
