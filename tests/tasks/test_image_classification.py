"""Image classification through fairseq's commands, in this process."""

import numpy as np
import pytest

from fairseq_csp.data.images import DESCRIPTION
from fairseq_csp.errors import UserError
from fairseq_csp.tasks.image_classification import (
    ImageClassificationConfig,
    ImageClassificationTask,
)
from tests.helpers.images import write_files, write_pixels
from tests.helpers.running import configuration, logged, train, validate

SMALL = [
    *("--encoder-layers", "2", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "16"),
    *("--encoder-attention-heads", "2", "--head-dim", "8"),
]
WORDS = [
    *("--task", "image-classification", "--arch", "vit_cifar10", "--attention", "csp"),
    *("--criterion", "image_cross_entropy", "--patch-size", "4", *SMALL),
]


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    return write_pixels(tmp_path_factory.mktemp("images") / "pixels")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("images") / "files")


def task(data, **options):
    return ImageClassificationTask.setup_task(ImageClassificationConfig(data=str(data), **options))


def model_of(data, *words, task_options=None):
    cfg = configuration(str(data), *WORDS, *words)
    return task(data, **(task_options or {})).build_model(cfg.model)


def test_the_model_follows_the_data(pixels, tmp_path):
    model = model_of(pixels)
    assert model.image_size == (8, 8) and model.tokens == 4
    assert model.mlp_head[1].out_features == 3
    grey = write_pixels(tmp_path / "grey", shape=(6, 4, 1), classes=5)
    model = model_of(grey, "--patch-size", "3x2")
    assert model.image_size == (6, 4) and model.tokens == 4
    assert model.to_patch_embedding[1].in_features == 6
    assert model.mlp_head[1].out_features == 5


def test_files_take_the_architectures_size(files):
    cfg = configuration(str(files), *WORDS)
    assert cfg.task.crop_size == 32
    made = ImageClassificationTask.setup_task(cfg.task)
    assert made.image_size == (32, 32)
    assert made.augmentation.kind == "resized-crop"
    assert made.build_model(cfg.model).tokens == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image-size", "16"], "--image-size is 16, but the images of .* have 8x8 pixels"),
        (["--image-channels", "1"], "--image-channels is 1, but .* have 3"),
        (["--sentence-class-num", "2"], "--sentence-class-num is 2, but .* has 3 classes"),
        (["--patch-size", "3"], "--patch-size 3x3 does not divide images of 8x8 pixels"),
    ],
)
def test_a_model_for_other_images_is_refused(words, message, pixels):
    with pytest.raises(UserError, match=message):
        model_of(pixels, *words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixel_mean": [0.5]}, "--pixel-mean has 1 numbers, but the images of .* 3 channels"),
        ({"pixel_std": [0.5, 0.0, 0.5]}, "--pixel-std is 0.5,0,0.5; each must be above zero"),
        ({"rand_augment": [2]}, "--rand-augment is 2; it must be how many operations"),
        ({"rand_augment": [2, 11]}, "--rand-augment is 2,11; it must be"),
        ({"mixup": -1.0}, "--mixup is -1.0; it must be 0"),
    ],
)
def test_a_wrong_flag_is_told_in_a_sentence(options, message, pixels):
    with pytest.raises(UserError, match=message):
        task(pixels, **options)


def test_classes_beyond_the_names_are_refused(tmp_path):
    data = write_pixels(tmp_path / "pixels")
    np.save(data / "label" / "valid.npy", np.full(5, 3))
    with pytest.raises(UserError, match="split valid has class 3, but there are 3 class names"):
        task(data).load_dataset("valid")


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--label-smoothing", "0.1", "--mixup", "0.5", "--rand-augment", "1,5"],
        ["--sen-rep-type", "cls", "--attention", "softmax"],
        ["--augmentation", "none", "--no-shuffle"],
    ],
    ids=["plain", "extras", "class token", "none"],
)
@pytest.mark.parametrize("kind", ["pixels", "files"])
def test_training_and_validation_agree(kind, flags, request, tmp_path):
    data = request.getfixturevalue(kind)
    words = [*WORDS, "--crop-size", "8", *flags]
    with logged("fairseq.logging.progress_bar") as lines:
        state = train(data, tmp_path, *words, updates=6)
    (last,) = [line for line in lines[-2:] if " valid " in f" {line} " or "valid on" in line][-1:]
    found = validate(tmp_path / "checkpoint_last.pt", data=data)
    assert f"loss {found['loss']:g} " in last and f"accuracy {found['accuracy']:g} " in last
    assert 0 <= found["accuracy"] <= found["top5"] == 100
    assert state["task_state"]["classes"] == [f"class {k}" for k in range(3)]


def test_a_checkpoint_brings_its_normalisation(pixels, tmp_path):
    train(pixels, tmp_path / "run", *WORDS, "--pixel-mean", "0.1,0.2,0.3", updates=2)
    path = tmp_path / "run" / "checkpoint_last.pt"
    before = validate(path, data=pixels)
    # data that were described anew do not change what a checkpoint gives
    other = write_pixels(tmp_path / "other")
    description = (other / DESCRIPTION).read_text()
    (other / DESCRIPTION).write_text(description.replace("0.25", "0.5"))
    assert validate(path, data=other) == before
    with pytest.raises(UserError, match="trained with --pixel-mean 0.1,0.2,0.3, this run has 0.4"):
        train(pixels, tmp_path / "run", *WORDS, updates=4)


def test_a_checkpoint_of_other_classes_is_refused(pixels, tmp_path):
    train(pixels, tmp_path / "run", *WORDS, updates=2)
    other = write_pixels(tmp_path / "other")
    description = (other / DESCRIPTION).read_text()
    (other / DESCRIPTION).write_text(description.replace("class 1", "class one"))
    with pytest.raises(UserError, match="trained on 3 classes .* but .* has 3"):
        validate(tmp_path / "run" / "checkpoint_last.pt", data=other)


def test_published_splits(pixels, tmp_path):
    """As published: trained on all images, the best epoch chosen on test."""
    words = [*WORDS, "--train-subset", "train+valid", "--valid-subset", "test"]
    with logged("fairseq_csp.tasks.image_classification") as lines:
        state = train(pixels, tmp_path, *words, "--max-epoch", "1", updates=100)
    assert "train+valid: 17 images of 3 classes" in lines
    assert "test: 3 images of 3 classes" in lines
    assert state["optimizer_history"][-1]["num_updates"] == 5
