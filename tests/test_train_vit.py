"""train_vit.sh: the arguments and recipes of image classification, and a run from them."""

import json
import re

import pytest

from fairseq_csp.recipes.arguments import parse_arguments
from fairseq_csp.recipes.benchmarks import BENCHMARKS
from fairseq_csp.recipes.vision import data_sets, flags
from tests.helpers.commands import call
from tests.helpers.images import write_pixels

VISION = "benchmark=vision"
VIT = "model_name=vit"


def test_help_and_errors():
    answer = call("bash", "train_vit.sh", "--help")
    assert answer.returncode == 0
    assert "bash train_vit.sh model_name=MODEL" in answer.stdout
    for words, message in (
        (
            [VIT],
            "dataset_name is missing; it is one of cifar10, cifar100, mnist, ",
        ),
        (
            ["model_name=mega", "dataset_name=cifar10"],
            "'mega'; it must be one of vit",
        ),
        ([VIT, "dataset_name=aan"], "dataset_name is 'aan'; it must be one of cifar10"),
        (
            [VIT, "dataset_name=mnist", "preset=mega"],
            "it must be one of default, paper, demo, laptop",
        ),
        (
            [VIT, "dataset_name=mnist", "preset=laptop"],
            "no recipe for mnist; it has one for cifar10",
        ),
        ([VIT, "dataset_name=tiny-imagenet", "preset=paper"], "no recipe for tiny-imagenet"),
    ):
        answer = call("bash", "train_vit.sh", *words)
        assert answer.returncode == 2 and answer.stderr.startswith("train_vit.sh: ")
        assert message in answer.stderr and answer.stderr.count("\n") == 1


def test_the_names_of_the_data():
    choice = parse_arguments([VISION, VIT, "dataset_name=cifar10", "preset=demo"])
    assert (choice.data_set, choice.data_name) == ("cifar10-rgb", "cifar10-rgb-demo")
    assert choice.attention == "csp"
    assert parse_arguments([VISION, VIT, "dataset_name=cifar10"]).preset == "default"


@pytest.mark.parametrize(
    ("dataset", "preset", "updates"),
    [
        ("cifar10", "paper", 78_200),
        ("cifar100", "paper", 78_200),
        ("mnist", "paper", 93_800),
        ("cifar10", "default", 70_400),
        ("mnist", "default", 84_400),
        ("tiny-imagenet", "default", 140_700),
    ],
)
def test_recipes(dataset, preset, updates):
    """A hundred epochs of batches of 64, the last one short; the rate falls to 0 at their end."""
    (stage,) = BENCHMARKS["vision"].stages("vit", dataset, preset)
    words = flags("vit", dataset, stage.recipe, "csp")
    values = dict(zip(words, words[1:], strict=False))
    assert values["--max-update"] == values["--lr-period-updates"] == str(updates)
    assert values["--arch"] == f"vit_{dataset.replace('-', '_')}"
    assert (values["--lr"], values["--batch-size"], values["--clip-norm"]) == ("0.0001", "64", "0")
    assert values["--adam-betas"] == "(0.9, 0.999)" and float(values["--weight-decay"]) == 0
    assert values.get("--train-subset") == ("train+valid" if preset == "paper" else None)
    assert values.get("--valid-subset") == ("test" if preset == "paper" else None)
    if (dataset, preset) == ("cifar10", "paper"):
        # the published deviations, which are not the measured ones
        assert values["--pixel-std"] == "0.2023,0.1994,0.201"


def test_recipe_of_the_laptop():
    """The small model for two epochs; the rate falls to 0 at their end; measured each half."""
    (stage,) = BENCHMARKS["vision"].stages("vit", "cifar10", "laptop")
    words = flags("vit", "cifar10", stage.recipe, "softmax")
    values = dict(zip(words, words[1:], strict=False))
    assert words.count("--arch") == 1 and values["--arch"] == "vit_cifar_small"
    assert (values["--max-update"], values["--save-interval-updates"]) == ("1408", "352")
    assert int(values["--warmup-updates"]) + int(values["--lr-period-updates"]) == 1408
    assert stage.recipe.bfloat16


@pytest.mark.parametrize("preset", ["default", "demo"])
def test_every_data_set_has_a_recipe(preset):
    for dataset in data_sets():
        (stage,) = BENCHMARKS["vision"].stages("vit", dataset, preset)
        assert stage.recipe.decay == stage.recipe.updates > stage.recipe.warmup


def test_a_run_says_where_its_epoch_was_chosen(tmp_path):
    data = write_pixels(tmp_path / "data", shape=(8, 8, 3), classes=2)
    sizes = ["--encoder-layers", "1", "--encoder-embed-dim", "8", "--encoder-ffn-embed-dim", "8",
             "--encoder-attention-heads", "1", "--head-dim", "8", "--batch-size", "6",
             "--max-update", "4", "--lr-period-updates", "4"]  # fmt: skip
    answer = call(
        "bash", "train_vit.sh", VIT, "dataset_name=cifar10", "preset=paper", "gpus=0",
        f"data_dir={data}", f"save_dir={tmp_path / 'run'}", "--", *sizes,
    )  # fmt: skip
    log = answer.stdout + answer.stderr
    assert answer.returncode == 0, log
    assert "The best epoch is chosen on the test images" in log
    assert "train+valid: 17 images" in log
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    last = answer.stdout.strip().splitlines()[-1]
    found = re.fullmatch(
        r"data \| vit_cifar10 \| csp \| test accuracy ([\d.]+) % \| 3 examples \| .*best.pt", last
    )
    assert float(found[1]) == result["accuracy"]
