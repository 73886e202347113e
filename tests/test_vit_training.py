"""A Vision Transformer through the real commands: workers, a kill in mid-epoch, two processes."""

import pytest
import torch

from fairseq_csp.models.vit import ViTConfig, ViTModel
from tests.helpers.commands import logged, start_pair, succeed
from tests.helpers.images import write_pixels
from tests.helpers.wrapped import in_torchs_wrapper
from tests.test_distributed import finish
from tests.test_kill_and_resume import KILLED, Run, assert_same_runs


def command(data, save_dir, *flags):
    return [
        "fairseq-train", data, "--user-dir", "fairseq_csp", "--save-dir", save_dir,
        "--task", "image-classification", "--arch", "vit_cifar10", "--attention", "csp",
        "--criterion", "image_cross_entropy", "--patch-size", "4", "--encoder-layers", "2",
        "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "16",
        "--encoder-attention-heads", "2", "--head-dim", "8",
        "--optimizer", "adam", "--adam-betas", "(0.9, 0.999)", "--lr", "0.003",
        "--lr-scheduler", "cosine", "--max-update", "14", "--lr-period-updates", "14",
        "--clip-norm", "0", "--batch-size", "4", "--cpu", "--save-interval-updates", "2",
        "--keep-interval-updates", "1", "--no-epoch-checkpoints",
        "--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric",
        "--log-format", "json", "--log-interval", "1", *flags,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    # 5 batches an epoch, the last of them short
    splits = {"train": 18, "valid": 6, "test": 6}
    return write_pixels(tmp_path_factory.mktemp("images") / "pixels", splits=splits)


def vit_run(images, save_dir, *flags):
    # mixup as well, whose pairs must not hang on the batch
    return Run(save_dir, command(images, save_dir, "--mixup", "0.5", *flags))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    run = vit_run(images, tmp_path_factory.mktemp("whole"), "--num-workers", "0")
    assert run.go() == 0, run.log
    assert [number for split, number in sorted(run.losses) if split == "train_inner"] == [
        *range(1, 15)
    ]
    return run


def test_loader_workers_change_nothing(whole, images, tmp_path):
    run = vit_run(images, tmp_path, "--num-workers", "4")
    assert run.go() == 0, run.log
    assert_same_runs(whole, run)


def test_a_kill_in_mid_epoch_changes_nothing(whole, images, tmp_path):
    run = vit_run(images, tmp_path, "--num-workers", "2")
    # three updates into the second epoch, one behind a checkpoint
    assert run.go(KILL_AFTER=r'train_inner \| .*"num_updates": "9"') == KILLED, run.log
    assert run.updates() == 8
    assert run.go() == 0, run.log
    assert "Loaded checkpoint" in run.log
    assert_same_runs(whole, run)


def test_two_processes_equal_one_with_the_doubled_batch(images, tmp_path):
    # an update takes in all images, which both divide among them
    flags = ["--dropout", "0", "--embedding-dropout", "0", "--max-update", "3"]
    alone = succeed(*command(images, tmp_path / "one", *flags, "--batch-size", "18"))
    pair = start_pair(command(images, tmp_path / "two", *flags, "--batch-size", "9"))
    together = finish(pair)
    for tag, keys in (("train_inner", ("loss", "gnorm")), ("valid", ("valid_loss",))):
        one, two = logged(alone, tag), logged(together, tag)
        assert len(one) == len(two) > 0
        for key in keys:
            expected = [float(entry[key]) for entry in one]
            assert [float(entry[key]) for entry in two] == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize("pooling", ["mp", "cls", "max"])
def test_torchs_own_wrapper_finds_no_unused_parameters(pooling, tmp_path):
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(image_size=8, patch_size=4, encoder_layers=2, encoder_embed_dim=8,
                               attention="csp", sen_rep_type=pooling))  # fmt: skip

    def train(wrapped):
        for _ in range(2):
            # the second step fails where a parameter took no part in the first
            wrapped(torch.randn(2, 3, 8, 8)).square().sum().backward()

    in_torchs_wrapper(model, tmp_path, train)
