"""CIFAR-10 from both raw forms, and the conversion of published text images."""

import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from fairseq_csp.data.pixels import load_labels, load_pixels
from preprocess.__main__ import main
from tests.helpers.processed import files

SIZES = {"data_batch_1": 12, "data_batch_2": 11, "data_batch_3": 1, "data_batch_4": 3,
         "data_batch_5": 3, "test_batch": 10}  # fmt: skip


def luma(colours):
    """ITU-R 601-2, in the fixed-point form that PIL documents."""
    red, green, blue = (colours[..., channel].astype(np.int64) for channel in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


@pytest.fixture
def batches(tmp_path):
    """The unpacked release, and its images (n, 32, 32, 3) and labels by file."""
    rng = np.random.default_rng(0)
    directory = tmp_path / "cifar-10-batches-py"
    directory.mkdir()
    content = {}
    for name, size in SIZES.items():
        data = rng.integers(0, 256, (size, 3072), dtype=np.uint8)
        labels = rng.integers(0, 10, size).tolist()
        batch = {b"batch_label": b"x", b"labels": labels, b"data": data, b"filenames": [b"a"]}
        (directory / name).write_bytes(pickle.dumps(batch, protocol=2))
        content[name] = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels
    (directory / "batches.meta").write_bytes(pickle.dumps({}))
    return directory, content


def together(content, names):
    images = np.concatenate([luma(content[name][0]).reshape(-1, 1024) for name in names])
    return images, sum((content[name][1] for name in names), [])


def check(out, content):
    images, labels = together(content, ["test_batch"])
    np.testing.assert_array_equal(load_pixels(out, "test"), images)
    assert load_labels(out, "test").tolist() == labels
    pairs = {}
    for split, size in (("train", 27), ("valid", 3)):
        pixels = load_pixels(out, split)
        assert len(pixels) == size
        found = load_labels(out, split, images=size)
        pairs |= {image.tobytes(): label for image, label in zip(pixels, found, strict=True)}
    images, labels = together(content, [name for name in SIZES if name != "test_batch"])
    expected = zip(images.astype(np.uint8), labels, strict=True)
    assert pairs == {image.tobytes(): label for image, label in expected}


def test_pickled_batches_from_directory_and_archive(batches, prepare, tmp_path):
    directory, content = batches
    out = prepare("cifar10", "--raw", directory, "--limit", 100)
    check(out, content)
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in sorted(SIZES, reverse=True):  # the real archive is in no order either
            tar.add(directory / name, f"cifar-10-batches-py/{name}")
    again = prepare("cifar10", "--raw", archive, "--limit", 100, out=tmp_path / "again")
    same = [name for name in files(out) if name.endswith(".npy")]
    assert len(same) == 6 and all(files(out)[name] == files(again)[name] for name in same)
    assert json.loads((again / "summary.json").read_text())["limited"] is True
    other = prepare("cifar10", "--raw", archive, "--limit", 9, "--seed", 1, out=tmp_path / "b")
    assert len(load_pixels(other, "train")) == 9
    assert not np.array_equal(load_pixels(other, "valid"), load_pixels(out, "valid"))


def test_png_files_by_class(prepare, tmp_path):
    rng = np.random.default_rng(0)
    names = ["airplane", "automobile", "bird", "cat", "deer",
             "dog", "frog", "horse", "ship", "truck"]  # fmt: skip
    content = {"data_batch_1": ([], []), "test_batch": ([], [])}
    for pool, key, count in (("train", "data_batch_1", 3), ("test", "test_batch", 1)):
        for label, name in enumerate(names):
            (tmp_path / "png" / pool / name).mkdir(parents=True)
            for number in range(count):
                colours = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                path = tmp_path / "png" / pool / name / f"{number:04}.png"
                Image.fromarray(colours).save(path)
                content[key][0].append(colours)
                content[key][1].append(label)
    content = {key: (np.stack(images), labels) for key, (images, labels) in content.items()}
    out = prepare("cifar10", "--raw", tmp_path / "png", "--limit", 100)
    content |= {name: (np.empty((0, 32, 32, 3)), []) for name in SIZES if name not in content}
    check(out, content)


class Evil:
    def __reduce__(self):
        return eval, ("__import__('os').mkdir('/tmp/evil')",)


def test_a_pickle_that_runs_code_is_refused(batches, fail):
    directory, _ = batches
    (directory / "data_batch_2").write_bytes(pickle.dumps({b"data": Evil()}))
    message = fail("cifar10", "--raw", directory)
    assert "data_batch_2" in message and "eval" in message and "refused" in message


@pytest.mark.parametrize(
    "batch",
    [
        b"not a pickle",
        pickle.dumps({b"data": np.zeros((2, 7), np.uint8), b"labels": [1, 2]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8)}),
    ],
)
def test_damaged_batches_are_named(batches, fail, batch):
    directory, _ = batches
    (directory / "test_batch").write_bytes(batch)
    assert str(directory / "test_batch") in fail("cifar10", "--raw", directory)


def test_incomplete_and_unknown_releases_are_told(batches, fail, tmp_path):
    directory, _ = batches
    message = fail("cifar10", "--raw", directory)
    assert "train has 27 examples, expected 45,000" in message
    (tmp_path / "empty").mkdir()
    assert "holds no batches" in fail("cifar10", "--raw", tmp_path / "empty")


def test_demo_is_reproducible_and_learnable(prepare, tmp_path):
    out = prepare("cifar10", "--demo")
    assert files(out) == files(prepare("cifar10", "--demo", out=tmp_path / "again"))
    assert json.loads((out / "summary.json").read_text())["limited"] is True

    def features(split):
        # the amplitude spectrum tells orientation and width
        images = load_pixels(out, split).reshape(-1, 32, 32) / 255
        spectrum = np.abs(np.fft.rfft2(images - images.mean((1, 2), keepdims=True)))
        return spectrum.reshape(len(images), -1)

    train, labels = features("train"), load_labels(out, "train")
    centres = np.stack([train[labels == label].mean(0) for label in range(10)])
    distance = ((features("test")[:, None] - centres) ** 2).sum(-1)
    assert (distance.argmin(1) == load_labels(out, "test")).mean() > 0.8


@pytest.fixture
def published(tmp_path):
    rng = np.random.default_rng(0)
    directory = tmp_path / "published"
    for kind in ("input", "label"):
        (directory / kind).mkdir(parents=True)
    for split, size in (("train", 9), ("valid", 2), ("test", 3)):
        images = rng.integers(0, 256, (size, 16)).tolist()
        text = "".join(" ".join(map(str, image)) + "\n" for image in images)
        (directory / "input" / f"{split}.src").write_text(text)
        labels = "".join(f"{number % 2}\n" for number in range(size))
        (directory / "label" / f"{split}.label").write_text(labels)
    return directory


def test_convert_gives_what_the_text_says(published, capsys):
    splits = ("train", "valid", "test")
    images = {split: load_pixels(published, split) for split in splits}
    labels = {split: load_labels(published, split) for split in splits}
    before = files(published)
    assert main(["convert", str(published)]) == 0
    for split in splits:
        for suffix in ("input", "label"):
            assert (published / suffix / f"{split}.npy").exists()
        np.testing.assert_array_equal(load_pixels(published, split), images[split])
        np.testing.assert_array_equal(load_labels(published, split), labels[split])
    after = files(published)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 7
    assert main(["convert", str(published)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["convert", str(published), "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("input/valid.src", "1 2 3\n", "another width"),
        ("input/valid.src", "1 x\n", "line 1: 'x'"),
        ("label/test.label", "1\n", "3 images, but 1 labels"),
        ("label/test.label", "1\n" * 4, "3 images, but 4 labels"),
        ("label/test.label", "a\n", "line 1: 'a'"),
    ],
)
def test_convert_refuses_a_bad_set_and_leaves_it_as_it_was(published, capsys, file, text, message):
    (published / file).write_text(text)
    before = files(published)
    assert main(["convert", str(published)]) == 1
    assert message in capsys.readouterr().err
    assert files(published) == before
