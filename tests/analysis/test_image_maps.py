"""Attention maps over an image."""

import csv

import pytest
import torch

from fairseq_csp.analysis.__main__ import main
from fairseq_csp.analysis.image_maps import over_image
from fairseq_csp.errors import UserError
from fairseq_csp.models.vit import ViTConfig, ViTModel
from tests.helpers.images import write_pixels
from tests.helpers.running import train

SIZES = {
    "image_size": "8x12",
    "patch_size": 4,
    "encoder_layers": 2,
    "encoder_embed_dim": 8,
    "encoder_attention_heads": 2,
    "head_dim": 4,
}


@pytest.mark.parametrize("pooling", ["mp", "cls"])
@pytest.mark.parametrize("attention", ["csp", "softmax"])
def test_the_weights_are_those_of_the_patches(attention, pooling):
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(attention=attention, sen_rep_type=pooling, **SIZES)).eval()
    sample = {"net_input": {"images": torch.randn(1, 3, 8, 12)}}
    weights = over_image(model, sample, 4)
    assert weights.shape == (2, 2, 3)
    total = weights.sum((1, 2))
    # without class token all of the weight is on the patches
    assert (total <= 1 + 1e-5).all() and (pooling == "cls" or torch.allclose(total, torch.ones(2)))
    assert pooling == "mp" or attention == "csp" or (total < 1).all()
    with pytest.raises(UserError, match="--patch is 6, but the patches are 0 to 5"):
        over_image(model, sample, 6)


def test_the_command(tmp_path):
    data = write_pixels(tmp_path / "pixels", shape=(8, 12, 3))
    words = ["--task", "image-classification", "--arch", "vit_cifar10", "--patch-size", "4",
             "--criterion", "image_cross_entropy", "--encoder-layers", "2",
             "--encoder-embed-dim", "8", "--encoder-ffn-embed-dim", "8", "--head-dim", "4",
             "--encoder-attention-heads", "2", "--attention", "csp"]  # fmt: skip
    train(data, tmp_path / "run", *words, updates=1)
    picture = tmp_path / "picture.png"
    checkpoint = tmp_path / "run" / "checkpoint_last.pt"
    assert main(["image-maps", str(checkpoint), "--out", str(picture)]) in (None, 0)
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(picture.with_suffix(".csv").open()))
    assert len(rows) == 2 * 6
    for layer in "01":
        total = sum(float(row["weight"]) for row in rows if row["layer"] == layer)
        assert total == pytest.approx(1, abs=1e-4)
