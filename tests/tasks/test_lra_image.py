"""Images as sequences of pixels."""

import numpy as np
import pytest
import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from fairseq_csp.errors import UserError
from fairseq_csp.tasks.lra_image import LRAImageConfig, LRAImageTask
from tests.helpers.generated import write_images
from tests.helpers.running import TINY, configuration, train, validate


def words(data, *others, arch="mega_lra_pf32"):
    return (str(data), *TINY, "--task", "lra-image", "--arch", arch, *map(str, others))


def setup(data, *others, **kwargs):
    cfg = configuration(*words(data, *others, **kwargs))
    return tasks.setup_task(cfg.task), cfg


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "data")


@pytest.mark.parametrize(
    ("others", "mean", "std"),
    [((), 0.5, 0.5), (("--pixel-normalization", "0.48", "0.24"), 0.48, 0.24)],
    ids=["default", "flag"],
)
def test_batch(images, others, mean, std):
    task, cfg = setup(images, "--no-shuffle", *others)
    task.load_dataset("train")
    dataset = task.dataset("train")
    batch = dataset.collater([dataset[index] for index in range(len(dataset))])
    raw = np.load(images / "input" / "train.npy")
    np.testing.assert_allclose(
        batch["net_input"]["src_tokens"], (raw / 255 - mean) / std, rtol=0, atol=1e-6
    )
    assert set(batch["net_input"]) == {"src_tokens"}
    assert batch["target"].tolist() == [0, 1] * 6
    assert batch["ntokens"] == 12 * 16
    assert task.build_model(cfg.model)(**batch["net_input"]).shape == (12, 2)


def test_normalisation_from_a_configuration(images):
    cfg = LRAImageConfig(data=str(images), pixel_normalization=[0.1, 0.2])
    task = LRAImageTask.setup_task(cfg)
    assert (task.mean, task.std) == (0.1, 0.2)


@pytest.mark.parametrize("wrong", [[0.5], [0.5, 0.0], [0.5, -1.0], [0.1, 0.2, 0.3]])
def test_wrong_normalisation(images, wrong):
    with pytest.raises(
        UserError, match="--pixel-normalization is .*; it must be a finite mean and"
    ):
        LRAImageTask(LRAImageConfig(data=str(images), pixel_normalization=wrong))


def test_normalisation_takes_two_words(images):
    parser = options.get_training_parser()
    with pytest.raises(SystemExit):
        options.parse_args_and_arch(parser, [*words(images), "--pixel-normalization", "0.5"])


def test_normalisation_survives_a_checkpoint(images, tmp_path):
    others = words(images, "--pixel-normalization", "3.0", "0.01")[1:]
    checkpoint = train(images, tmp_path, *others)
    assert checkpoint["cfg"]["task"]["pixel_normalization"] == [3.0, 0.01]
    found = validate(tmp_path / "checkpoint_last.pt")
    # pixels as large as these are told from others: the loss is that of the run's own validation
    assert found["accuracy"] == pytest.approx(checkpoint["extra_state"]["val_loss"], abs=1e-3)


def test_published_checkpoint_without_normalisation(images):
    """There the flag is in the namespace, and None."""
    parser = options.get_training_parser()
    given = [*words(images), "--criterion", "lra_cross_entropy", "--batch-size", "4"]
    args = options.parse_args_and_arch(parser, given)
    args.pixel_normalization = None
    task = tasks.setup_task(convert_namespace_to_omegaconf(args).task)
    assert (task.mean, task.std) == (0.5, 0.5)


def test_longer_than_max_positions(images):
    task, _ = setup(images, "--max-positions", 15)
    with pytest.raises(UserError, match="an image has 16 pixels, more than --max-positions 15"):
        task.load_dataset("train")


@pytest.mark.parametrize(("chunk", "fits"), [(4, True), (16, True), (20, True), (5, False)])
def test_chunks_divide_the_image(images, chunk, fits):
    task, cfg = setup(images, "--chunk-size", chunk)
    if not fits:
        with pytest.raises(UserError, match="--chunk-size 5 does not divide the 16 pixels"):
            task.load_dataset("train")
        return
    task.load_dataset("train")
    model = task.build_model(cfg.model)
    assert model(torch.randn(2, 16)).isfinite().all()


def test_a_label_that_is_no_class(images):
    task, _ = setup(images, "--sentence-class-num", 1)
    with pytest.raises(UserError, match=r"example 1 of split train has class 1, but .* 0 to 0"):
        task.load_dataset("train")


def test_text_has_another_architecture(images):
    task, cfg = setup(images, arch="mega_lra_listop")
    with pytest.raises(UserError, match="--input-type is text, but the task's input is image"):
        task.build_model(cfg.model)


def test_missing_data(images, tmp_path):
    task, _ = setup(tmp_path)
    with pytest.raises(UserError, match="there is neither train.npy nor train.src"):
        task.load_dataset("train")


@pytest.mark.parametrize("norm", ["batchnorm", "syncbatchnorm"])
def test_batch_norm_survives_a_checkpoint(images, norm, tmp_path):
    """syncbatchnorm is batchnorm outside distributed runs, with the same state dict."""
    others = words(images, "--norm-type", norm, "--encoder-normalize-before")[1:]
    checkpoint = train(images, tmp_path, *others, updates=3)
    moved = checkpoint["model"]["encoder.encoder.layers.0.mega_layer.norm.norm.running_mean"]
    assert moved.abs().max() > 0
    assert checkpoint["model"]["encoder.encoder.final_norm.norm.num_batches_tracked"] == 3
    other = "batchnorm" if norm == "syncbatchnorm" else "syncbatchnorm"
    task, cfg = setup(images, "--norm-type", other, "--encoder-normalize-before")
    model = task.build_model(cfg.model)
    model.load_state_dict(checkpoint["model"])


def test_products_in_tf32(images):
    products = torch.backends.cuda.matmul
    assert not products.allow_tf32
    setup(images)
    assert not products.allow_tf32
    try:
        setup(images, "--tf32")
        assert products.allow_tf32
    finally:
        products.allow_tf32 = False


def test_batches_for_a_gpu_are_pinned(images, monkeypatch):
    """fairseq copies them without waiting, which is so from pinned memory alone."""
    asked = []
    loader = torch.utils.data.DataLoader

    def noting(*args, **kwargs):
        asked.append(kwargs["pin_memory"])
        return loader(*args, **kwargs)

    monkeypatch.setattr(torch.utils.data, "DataLoader", noting)
    task, _ = setup(images)
    task.load_dataset("train")
    batches = task.get_batch_iterator(task.dataset("train"), max_sentences=4)
    assert len(list(batches.next_epoch_itr())) == 3
    assert asked == [True]
