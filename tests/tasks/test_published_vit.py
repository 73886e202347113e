"""A checkpoint of the published Vision Transformer loads here, and trains on as it would there."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from fairseq.logging import metrics
from fairseq_cli import train as fairseq_train

from fairseq_csp.data.images import Description
from fairseq_csp.errors import UserError
from fairseq_csp.models.vit_published import load, read
from tests.helpers.commands import ROOT
from tests.helpers.running import configuration, validate

GOLDEN = ROOT / "tests" / "golden" / "vit"
TRAJECTORY = np.load(GOLDEN / "vit_trajectory_trans.npz")
META = json.loads(str(TRAJECTORY["meta"]))


def save_published(path, arrays, kind):
    words = json.loads(str(arrays["meta"]))["published"]
    state = {
        name.removeprefix(f"{kind}/"): torch.tensor(arrays[name])
        for name in arrays.files
        if name.startswith(f"{kind}/")
    }
    # other words of the published command line
    torch.save({"args": words | {"lr": 1e-4, "validate": True}, "state_dict": state}, path)
    return path


@pytest.mark.parametrize("name", ["vit_csp_mean", "vit_trans_cls", "vit_trans_mean"])
def test_its_logits(name, tmp_path):
    arrays = np.load(GOLDEN / f"{name}.npz")
    model = load(save_published(tmp_path / "published.pt", arrays, "param")).eval()
    logits = model(torch.tensor(arrays["in/src_tokens"]))
    np.testing.assert_allclose(logits.detach(), arrays["out/logits"], rtol=0, atol=1e-5)


def test_its_weights_in_csp(tmp_path):
    arrays = np.load(GOLDEN / "vit_trans_mean.npz")
    path = save_published(tmp_path / "published.pt", arrays, "param")
    model = load(path, attention="csp")
    values = arrays["param/transformer.layers.0.0.fn.to_qkv.weight"][-32:]
    np.testing.assert_array_equal(model.transformer.layers[0][0].fn.to_qkv.weight.detach(), values)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The 48 images, as every split."""
    directory = tmp_path_factory.mktemp("data") / "cifar-48"
    for kind, array in (("input", "in/images"), ("label", "in/labels")):
        (directory / kind).mkdir(parents=True)
        for split in ("train", "valid", "test"):
            np.save(directory / kind / f"{split}.npy", TRAJECTORY[array])
    Description(tuple("0123456789"), tuple(META["mean"]), tuple(META["std"])).write(directory)
    return directory


def converted(data, directory, kind):
    published = save_published(directory / f"{kind}.pt", TRAJECTORY, kind)
    out = directory / f"{kind}-fairseq.pt"
    command = ["-m", "fairseq_csp.models.vit_published", published, data, out]
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)
    return out


def test_sixty_updates_through_fairseq(data, tmp_path):
    start = converted(data, tmp_path, "start")
    size = META["published"]
    words = [
        *("--task", "image-classification", "--arch", "vit_cifar10"),
        *("--criterion", "image_cross_entropy", "--augmentation", "none"),
        *("--patch-size", size["ps"], "--encoder-layers", size["n_layers"]),
        *("--encoder-embed-dim", size["dim"], "--encoder-ffn-embed-dim", size["mlp_dim"]),
        *("--encoder-attention-heads", size["n_heads"], "--head-dim", size["dim_head"]),
        *("--dropout", "0", "--embedding-dropout", "0", "--finetune-from-model", start),
        *("--adam-betas", "(0.9, 0.999)", "--lr", META["lr"], "--lr-scheduler", "cosine"),
        *("--lr-period-updates", META["updates"], "--warmup-updates", "0", "--clip-norm", "0"),
        *("--batch-size", "48", "--optimizer", "adam", "--max-update", META["updates"], "--cpu"),
        *("--num-workers", "0", "--no-epoch-checkpoints", "--no-progress-bar"),
        *("--disable-validation", "--save-dir", tmp_path / "run"),
    ]
    metrics.reset()
    fairseq_train.main(configuration(*map(str, (data, *words))))
    state = torch.load(tmp_path / "run" / "checkpoint_last.pt", weights_only=False)
    for name, value in state["model"].items():
        expected = TRAJECTORY[f"end/{name}"]
        np.testing.assert_allclose(value, expected, rtol=0, atol=2e-3, err_msg=name)
    # the loss of the published weights, in bits
    found = validate(converted(data, tmp_path, "end"), data=data)
    own = validate(tmp_path / "run" / "checkpoint_last.pt", data=data)
    assert own["loss"] == pytest.approx(found["loss"], abs=0.002)
    first = validate(start, data=data)
    assert first["loss"] == pytest.approx(TRAJECTORY["out/losses"][0] / np.log(2), abs=6e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["args"].pop("ps"), "args lack ps"),
        (lambda content: content["args"].update(attn="ema"), "attn is 'ema'; known are trans, swd"),
        (lambda content: content.pop("state_dict"), "no published checkpoint"),
    ],
)
def test_something_else_is_refused(change, message, tmp_path):
    path = save_published(tmp_path / "published.pt", TRAJECTORY, "start")
    content = torch.load(path)
    change(content)
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        read(path)
