"""Sets for image classification, from every raw form."""

import gzip
import json
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from fairseq_csp.data.images import Description, open_images
from fairseq_csp.data.pixels import load_labels
from tests.helpers.processed import files

SPLITS = ("train", "valid", "test")


def arrays(directory):
    return {
        split: (np.asarray(open_images(directory, split)), load_labels(directory, split))
        for split in SPLITS
    }


def pairs(*splits):
    """Images and labels without their order."""
    return sorted(
        (image.tobytes(), int(label))
        for images, labels in splits
        for image, label in zip(images, labels, strict=True)
    )


def pickled_release(directory, names, classes, key, meta, meta_key):
    """A CIFAR release with a few images a file; return images and labels by file."""
    rng = np.random.default_rng(0)
    directory.mkdir()
    content = {}
    for name, size in names.items():
        data = rng.integers(0, 256, (size, 3072), dtype=np.uint8)
        labels = rng.integers(0, classes, size).tolist()
        batch = {key.encode(): labels, b"data": data, b"filenames": [b"a"] * size}
        (directory / name).write_bytes(pickle.dumps(batch, protocol=2))
        content[name] = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels
    names = [f"name {number}".encode() for number in range(classes)]
    (directory / meta).write_bytes(pickle.dumps({meta_key.encode(): names}, protocol=2))
    return content


CIFAR = {
    "cifar10-rgb": (
        {f"data_batch_{number}": 4 for number in range(1, 6)} | {"test_batch": 6},
        10, "labels", "batches.meta", "label_names",
    ),
    "cifar100": ({"train": 20, "test": 6}, 100, "fine_labels", "meta", "fine_label_names"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["directory", "tar.gz"])
@pytest.mark.parametrize("name", CIFAR)
def test_pickled_batches(name, form, prepare, tmp_path):
    directory = tmp_path / "raw"
    content = pickled_release(directory, *CIFAR[name])
    raw = directory
    if form == "tar.gz":
        raw = tmp_path / "release.tar.gz"
        with tarfile.open(raw, "w:gz") as archive:
            archive.add(directory, "cifar")
    out = prepare(name, "--raw", raw, "--limit", "100")
    found = arrays(out)
    assert [len(found[split][1]) for split in SPLITS] == [18, 2, 6]
    test = content.pop("test_batch", None) or content.pop("test")
    np.testing.assert_array_equal(found["test"][0], test[0])
    assert found["test"][1].tolist() == test[1]
    assert pairs(found["train"], found["valid"]) == pairs(*content.values())
    described = Description.read(out)
    assert described.classes[:2] == ("name 0", "name 1")
    np.testing.assert_allclose(described.mean, found["train"][0].mean((0, 1, 2)) / 255, atol=1e-5)
    np.testing.assert_allclose(described.std, found["train"][0].std((0, 1, 2)) / 255, atol=1e-5)
    assert json.loads((out / "summary.json").read_text())["limited"] is True


def test_the_validation_images_are_those_of_the_grey_set(prepare, tmp_path):
    pickled_release(tmp_path / "raw", *CIFAR["cifar10-rgb"])
    colours = arrays(prepare("cifar10-rgb", "--raw", tmp_path / "raw", "--limit", "100"))
    grey = prepare("cifar10", "--raw", tmp_path / "raw", "--limit", "100")
    for split in SPLITS:
        np.testing.assert_array_equal(load_labels(grey, split), colours[split][1])
        luma = np.stack([Image.fromarray(image).convert("L") for image in colours[split][0]])
        np.testing.assert_array_equal(
            np.load(grey / "input" / f"{split}.npy"), luma.reshape(len(luma), -1)
        )


def save_tree(root, pools, classes, *, size=(32, 32), count=3, suffix="png", grey=()):
    """Images {pool}/{class}/*; return those of each pool, as they are in the files, with labels."""
    rng = np.random.default_rng(0)
    content = {pool: ([], []) for pool in pools}
    for pool in pools:
        for label, name in enumerate(sorted(classes)):
            for number in range(count):
                path = root / pool / name / f"{pool}_{label}_{number}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                image = Image.fromarray(pixels)
                (image.convert("L") if number in grey else image).save(path)
                content[pool][0].append(np.asarray(Image.open(path).convert("RGB")))
                content[pool][1].append(label)
    return content


def pack(directory, form):
    """The tree as it is, or in an archive."""
    if form == "directory":
        return directory
    raw = directory.with_name(f"release.{form}")
    if form == "zip":
        with zipfile.ZipFile(raw, "w") as archive:
            for path in sorted(directory.rglob("*")):
                archive.write(path, path.relative_to(directory))
    else:
        with tarfile.open(raw, "w") as archive:
            archive.add(directory, "release")
    return raw


@pytest.mark.parametrize("form", ["directory", "tar", "zip"])
@pytest.mark.parametrize(
    ("name", "pools", "size", "suffix"),
    [
        ("cifar10-rgb", ("train", "test"), (32, 32), "png"),
        ("tiny-imagenet", ("train", "val"), (64, 64), "JPEG"),
        ("image-folder", ("train", "valid", "test"), (12, 8), "jpg"),
    ],
)
def test_trees_of_class_folders(name, pools, size, suffix, form, prepare, tmp_path):
    classes = ["owl", "bee", "cat"]
    content = save_tree(tmp_path / "raw", pools, classes, size=size, suffix=suffix, grey={1})
    out = prepare(name, "--raw", pack(tmp_path / "raw", form), "--limit", "100", workers=2)
    found = arrays(out)
    assert Description.read(out).classes == ("bee", "cat", "owl")
    assert pairs(found["test"]) == pairs(content[pools[-1]])
    train = [found["train"]] if "valid" in pools else [found["train"], found["valid"]]
    assert pairs(*train) == pairs(content["train"])
    if "valid" in pools:
        assert pairs(found["valid"]) == pairs(content["valid"])


def test_tiny_imagenet_as_released(prepare, tmp_path):
    """Its val images lie in one folder, with their classes in a file."""
    raw = tmp_path / "tiny-imagenet-200"
    content = save_tree(raw, ("train", "val"), ["n1", "n2"], size=(64, 64), suffix="JPEG")
    for path in sorted((raw / "train").rglob("*.JPEG")):
        (path.parent / "images").mkdir(exist_ok=True)
        path.rename(path.parent / "images" / path.name)
    lines = []
    (raw / "val" / "images").mkdir()
    for path in sorted((raw / "val").rglob("*.JPEG")):
        lines.append(f"{path.name}\t{path.parent.name}\t0\t0\t62\t62\n")
        path.rename(raw / "val" / "images" / path.name)
    for name in ("n1", "n2"):
        (raw / "val" / name).rmdir()
    (raw / "val" / "val_annotations.txt").write_text("".join(lines))
    # without labels, not used
    (raw / "test" / "images").mkdir(parents=True)
    shutil.copy(next((raw / "val" / "images").iterdir()), raw / "test" / "images" / "test_0.JPEG")
    found = arrays(prepare("tiny-imagenet", "--raw", raw, "--limit", "100"))
    assert pairs(found["test"]) == pairs(content["val"])
    assert pairs(found["train"], found["valid"]) == pairs(content["train"])


def idx(array):
    head = np.array([2051 if array.ndim == 3 else 2049, *array.shape], dtype=">u4")
    return head.tobytes() + array.astype(np.uint8).tobytes()


def digits(directory, packed):
    rng = np.random.default_rng(0)
    directory.mkdir()
    content = {}
    for pool, count in (("train", 20), ("t10k", 5)):
        images = rng.integers(0, 256, (count, 28, 28))
        labels = rng.integers(0, 10, count)
        content[pool] = images.astype(np.uint8)[..., None], labels
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx(array)
            name = f"{pool}-{kind}-ubyte" + (".gz" if packed else "")
            (directory / name).write_bytes(gzip.compress(data) if packed else data)
    return content


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
def test_mnist(packed, prepare, tmp_path):
    content = digits(tmp_path / "raw", packed)
    out = prepare("mnist", "--raw", tmp_path / "raw", "--limit", "100")
    found = arrays(out)
    assert pairs(found["test"]) == pairs(content["t10k"])
    assert pairs(found["train"], found["valid"]) == pairs(content["train"])
    assert Description.read(out).channels == 1


def test_large_images_stay_files(prepare, tmp_path):
    content = save_tree(tmp_path / "raw", ("train", "val"), ["a", "b"], size=(140, 130), count=10)
    out = prepare("image-folder", "--raw", tmp_path / "raw")
    described = Description.read(out)
    assert described.root == str(tmp_path / "raw")
    for split, count in (("train", 18), ("valid", 2), ("test", 20)):
        paths, labels = open_images(out, split), load_labels(out, split)
        assert len(paths) == len(labels) == count
        for path, label in zip(paths, labels, strict=True):
            assert path.decode().split("/")[1] == "ab"[label]
            assert (tmp_path / "raw" / path.decode()).is_file()
    assert len(content["val"][1]) == 20
    assert json.loads((out / "summary.json").read_text())["limited"] is False


@pytest.mark.parametrize("size", [(8, 8), (140, 130)], ids=["decoded", "files"])
def test_limit_keeps_every_class_of_a_tree(size, prepare, tmp_path):
    save_tree(tmp_path / "raw", ("train", "val"), ["a", "b"], size=size, count=20)
    out = prepare("image-folder", "--raw", tmp_path / "raw", "--limit", "15")
    for split, count in (("train", 15), ("valid", 4), ("test", 15)):
        labels = load_labels(out, split)
        assert len(labels) == count and set(labels.tolist()) == {0, 1}


@pytest.mark.parametrize("name", ["cifar10-rgb", "cifar100"])
def test_limit_keeps_every_class_of_sorted_batches(name, prepare, tmp_path):
    pickled_release(tmp_path / "raw", *CIFAR[name])
    test = {"cifar10-rgb": "test_batch", "cifar100": "test"}[name]
    key = {"cifar10-rgb": b"labels", "cifar100": b"fine_labels"}[name]
    labels = np.repeat(np.arange(10), 20).tolist()
    batch = {key: labels, b"data": np.zeros((len(labels), 3072), np.uint8)}
    (tmp_path / "raw" / test).write_bytes(pickle.dumps(batch, protocol=2))
    found = load_labels(prepare(name, "--raw", tmp_path / "raw", "--limit", "60"), "test")
    assert len(found) == 60 and set(found.tolist()) == set(range(10))


@pytest.mark.parametrize("name", ["cifar10-rgb", "cifar100", "mnist", "image-folder"])
def test_demo_is_reproducible(name, prepare, tmp_path):
    out = prepare(name, "--demo", "--limit", "30")
    assert files(out) == files(prepare(name, "--demo", "--limit", "30", out=tmp_path / "again"))
    assert json.loads((out / "summary.json").read_text())["limited"] is True
    assert len(Description.read(out).classes) == 10


def break_image(root):
    path = root / "train" / "b" / "train_1_0.png"
    path.write_bytes(path.read_bytes()[:200])


def other_size(root):
    Image.new("RGB", (5, 7)).save(root / "train" / "b" / "train_1_0.png")


BROKEN = [
    ("cifar10-rgb", lambda root: None, "has 2 class folders, expected 10"),
    ("cifar10-rgb", lambda root: shutil.rmtree(root / "test" / "b"),
     "class folder 'b' is in train but not in test (1 such)"),
    ("cifar10-rgb", lambda root: shutil.rmtree(root / "train" / "b"),
     "class folder 'b' is in test but not in train (1 such)"),
    ("cifar10-rgb", lambda root: shutil.rmtree(root / "train"), "has no folder train/CLASS"),
    ("image-folder", lambda root: shutil.rmtree(root / "test"), "neither a folder valid or val"),
    ("image-folder", break_image, "train_1_0.png is not a readable PNG or JPEG image"),
    ("image-folder", lambda root: (root / "train" / "b" / "train_1_0.png").write_bytes(b"x"),
     "train_1_0.png is not a readable PNG or JPEG image"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "message"), BROKEN)
def test_a_bad_tree_is_told_in_a_sentence(name, damage, message, fail, tmp_path):
    root = tmp_path / "raw"
    save_tree(root, ("train", "test"), ["a", "b"])
    damage(root)
    limit = [] if "expected 10" in message else ["--limit", "9"]
    assert message in fail(name, "--raw", root, *limit)


def test_an_image_of_another_size_is_named(fail, tmp_path):
    save_tree(tmp_path / "raw", ("train", "test"), ["a", "b"])
    other_size(tmp_path / "raw")
    message = fail("cifar10-rgb", "--raw", tmp_path / "raw", "--limit", "9")
    assert "train_1_0.png has 5 x 7 pixels, expected 32 x 32" in message


def test_large_images_in_an_archive_are_refused(fail, tmp_path):
    save_tree(tmp_path / "raw", ("train", "test"), ["a"], size=(140, 140), count=1)
    message = fail("image-folder", "--raw", pack(tmp_path / "raw", "tar"))
    assert "which stay files: unpack it" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"", "no idx file of images"),
        ("train-images-idx3-ubyte", idx(np.zeros((20, 28, 28)))[:-1], "cut short or damaged"),
        ("train-labels-idx1-ubyte", idx(np.zeros(19)), "20 images of 28 x 28 pixels and 19 labels"),
        ("train-labels-idx1-ubyte", idx(np.full(20, 10)), "has a label 10 above 9"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((5, 20, 28))), "5 images of 20 x 28 pixels"),
        ("t10k-labels-idx1-ubyte", None, "no file t10k-labels"),
    ],
)
def test_damaged_digits_are_named(name, content, message, fail, tmp_path):
    digits(tmp_path / "raw", packed=False)
    path = tmp_path / "raw" / name
    path.unlink() if content is None else path.write_bytes(content)
    assert message in fail("mnist", "--raw", tmp_path / "raw", "--limit", "9")


def test_a_cut_gz_is_named(fail, tmp_path):
    digits(tmp_path / "raw", packed=True)
    path = tmp_path / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:500])
    assert f"{path} is cut short or damaged" in fail("mnist", "--raw", tmp_path / "raw")


def test_a_pickle_that_lacks_the_labels_is_named(fail, tmp_path):
    pickled_release(tmp_path / "raw", *CIFAR["cifar100"])
    (tmp_path / "raw" / "train").write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}))
    message = fail("cifar100", "--raw", tmp_path / "raw", "--limit", "9")
    assert "train is not a CIFAR-100 batch: it has no 'fine_labels'" in message


def test_counts_are_asserted(fail, tmp_path):
    pickled_release(tmp_path / "raw", *CIFAR["cifar10-rgb"])
    assert "train has 18 examples, expected 45,000" in fail(
        "cifar10-rgb", "--raw", tmp_path / "raw"
    )
