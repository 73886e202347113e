"""Image sets: what an item is a function of, and what is said of a damaged one."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fairseq_csp.data.augmentation import Augmentation
from fairseq_csp.data.images import DESCRIPTION, ImageDataset
from fairseq_csp.errors import UserError
from tests.helpers.images import write_files, write_pixels

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def dataset(directory, split="train", **options):
    options = {"mean": MEAN, "std": STD, "size": (8, 8)} | options
    return ImageDataset(directory, split, **options)


def batch(data, indices=None, epoch=1):
    data.set_epoch(epoch)
    return data.collater([data[k] for k in (range(len(data)) if indices is None else indices)])


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    return write_pixels(tmp_path_factory.mktemp("images") / "pixels")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("images") / "files")


def test_a_batch_without_augmentation(pixels):
    found = batch(dataset(pixels, "valid", tokens=4))
    raw = np.load(pixels / "input" / "valid.npy") / 255
    expected = ((raw - MEAN) / STD).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found["net_input"]["images"], expected, rtol=0, atol=1e-6)
    assert found["net_input"]["images"].dtype == torch.float32
    assert found["target"].tolist() == [0, 1, 2, 0, 1]
    assert (found["nsentences"], found["ntokens"]) == (5, 20)


def test_two_splits_one_after_the_other(pixels):
    both = batch(dataset(pixels, "train+valid"))
    parts = [batch(dataset(pixels, split)) for split in ("train", "valid")]
    for name in ("target",):
        assert torch.equal(both[name], torch.cat([part[name] for part in parts]))
    images = torch.cat([part["net_input"]["images"] for part in parts])
    assert torch.equal(both["net_input"]["images"], images)


OPTIONS = {
    "crop": Augmentation("crop"),
    "randaugment": Augmentation("crop", operations=2, magnitude=9),
    "mixup": Augmentation("crop", mixup=0.8),
    "resized": Augmentation("resized-crop"),
}


@pytest.mark.parametrize("kind", ["pixels", "files"])
@pytest.mark.parametrize("augmentation", OPTIONS.values(), ids=OPTIONS)
def test_an_item_is_a_function_of_seed_epoch_and_index(kind, augmentation, request):
    directory = request.getfixturevalue(kind)
    data = dataset(directory, augmentation=augmentation, seed=3, shuffle=True)
    whole = batch(data)["net_input"]["images"]
    alone = torch.cat([batch(data, [k])["net_input"]["images"] for k in (7, 2, 5)])
    assert torch.equal(alone, whole[[7, 2, 5]])
    # in another process, with other items before it
    data.set_epoch(1)
    loader = DataLoader(data, sampler=range(12), batch_size=3, num_workers=2,
                        collate_fn=data.collater)  # fmt: skip
    assert torch.equal(torch.cat([found["net_input"]["images"] for found in loader]), whole)
    for other in (
        batch(data, epoch=2),
        batch(dataset(directory, augmentation=augmentation, seed=4)),
    ):
        assert not torch.equal(other["net_input"]["images"], whole)


def test_each_epoch_has_an_order_of_its_own(pixels):
    data = dataset(pixels, shuffle=True, seed=5)
    orders = []
    for epoch in (1, 2, 1):
        data.set_epoch(epoch)
        orders.append(data.ordered_indices().tolist())
    assert sorted(orders[0]) == list(range(12)) and orders[0] == orders[2] != orders[1]
    assert dataset(pixels).ordered_indices().tolist() == list(range(12))


def test_mixup_is_a_weighted_mean(pixels):
    data = dataset(pixels, augmentation=Augmentation("none", mixup=0.5))
    plain = batch(dataset(pixels))
    mixed = batch(data)
    weights = mixed["weight"]
    assert 0 <= weights.min() < 0.2 and 0.8 < weights.max() <= 1
    others = [data[k]["other class"] for k in range(12)]
    assert mixed["other_target"].tolist() == others and len(set(others)) > 1
    images = plain["net_input"]["images"]
    for k in range(12):
        fits = [
            torch.allclose(
                mixed["net_input"]["images"][k],
                weights[k] * images[k] + (1 - weights[k]) * images[other],
                atol=1e-5,
            )
            for other in range(12)
        ]
        assert fits.count(True) >= 1
        assert plain["target"][fits.index(True)] == others[k]


def test_files_have_the_size_that_was_asked_for(files):
    for augmentation in (None, Augmentation("resized-crop"), Augmentation("crop")):
        data = dataset(files, size=(6, 10), augmentation=augmentation)
        images = batch(data)["net_input"]["images"]
        assert images.shape == (12, 3, 6, 10)
    # the first is a grey one among colours: all channels are alike
    grey = batch(dataset(files, "valid", mean=(0, 0, 0), std=(1, 1, 1)))["net_input"]["images"][0]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])


def test_a_pickled_set_maps_its_files_again(pixels):
    data = dataset(pixels)
    content = pickle.dumps(data)
    assert len(content) < 3000
    assert torch.equal(batch(pickle.loads(content))["target"], batch(data)["target"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_file_is_named(workers, tmp_path):
    directory = write_files(tmp_path / "files")
    path = directory / "files" / "train" / "4.jpg"
    path.write_bytes(path.read_bytes()[:300])
    data = dataset(directory)
    loader = DataLoader(data, batch_size=12, num_workers=workers, collate_fn=data.collater)
    with pytest.raises(UserError) as caught:
        list(loader)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a whole PNG or JPEG image (") and "\n" not in message


def write(name, content):
    return lambda directory: (directory / name).write_bytes(content)


def save(name, array):
    return lambda directory: np.save(directory / name, array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda directory: (directory / DESCRIPTION).unlink(), "images.json is not there"),
        (write(DESCRIPTION, b"{}"), "images.json is damaged"),
        (write(DESCRIPTION, b'{"classes": ["a"], "mean": [1, 1], "std": [1, 1], "root": null}'),
         "images.json is damaged"),
        (write("input/train.npy", b"x"), "train.npy is not a complete NumPy array"),
        (lambda directory: (directory / "input/train.npy").unlink(), "train.npy is not there"),
        (save("input/train.npy", np.zeros((3, 8, 8), np.uint8)), "expected uint8 of .images, hei"),
        (save("input/train.npy", np.zeros((0, 8, 8, 3), np.uint8)), "train.npy holds no images"),
        (save("input/train.npy", np.zeros((12, 8, 8, 1), np.uint8)), "has 1 channel"),
        (save("input/train.npy", np.zeros((12, 6, 8, 3), np.uint8)), "of 6x8 pixels"),
        (save("label/train.npy", np.zeros(5, np.int64)), "5 labels for 12 images"),
        (save("label/train.npy", np.full(12, -1)), "label -1 is negative"),
    ],
)  # fmt: skip
def test_a_damaged_set_is_told_in_a_sentence(damage, message, tmp_path):
    directory = write_pixels(tmp_path / "pixels")
    damage(directory)
    with pytest.raises(UserError, match=message):
        dataset(directory)
