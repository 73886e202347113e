"""CIFAR-10 from both raw forms, and the conversion of published text images."""

import io
import json
import pickle
import struct
import tarfile
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fairseq_csp.data.pixels import load_labels, load_pixels
from fairseq_csp.errors import UserError
from preprocess.__main__ import main
from preprocess.cifar10 import DATA_SET, read_batch
from preprocess.images import read_image, to_grey
from preprocess.pickles import read_pickle
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


def test_smaller_images_have_the_means_of_blocks(batches, prepare):
    directory, content = batches
    out = prepare("cifar10", "--raw", directory, "--limit", 100, "--side", 16)
    images, labels = together(content, ["test_batch"])
    blocks = images.reshape(-1, 16, 2, 16, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 256, 4)
    assert np.abs(load_pixels(out, "test") - blocks.mean(2)).max() <= 0.5
    assert load_labels(out, "test").tolist() == labels


def test_smaller_images_are_no_full_set(monkeypatch, batches, prepare, fail):
    counts = {"train": 27, "valid": 3, "test": 10}
    monkeypatch.setattr("preprocess.cifar10.DATA_SET", replace(DATA_SET, counts=counts))
    for side in (32, 16):
        out = prepare("cifar10", "--raw", batches[0], "--side", side, "--overwrite")
        assert json.loads((out / "summary.json").read_text())["limited"] is (side == 16)
    assert "--side 16 cannot be combined with --demo" in fail("cifar10", "--demo", "--side", 16)


def test_limit_keeps_every_class_of_a_sorted_release(batches, prepare):
    directory, _ = batches
    path = directory / "test_batch"
    labels = np.repeat(np.arange(10), 20).tolist()
    data = np.zeros((len(labels), 3072), np.uint8)
    path.write_bytes(pickle.dumps({b"labels": labels, b"data": data}, protocol=2))
    out = prepare("cifar10", "--raw", directory, "--limit", 60)
    found = load_labels(out, "test").tolist()
    assert len(found) == 60 and set(found) == set(range(10))


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


# --- every form that a PNG file can have, written by hand, as PIL writes few of them

BLACK_TO_WHITE = (0x0000, 0x1234, 0x8080, 0xFFFF)  # of 16 bits; the upper 8 are 0, 18, 128, 255


def chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(depth, kind, row, *chunks):
    """One row of four pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, depth, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + b"".join([header, *chunks, pixels, chunk(b"IEND", b"")])


def words(*values):
    return struct.pack(f">{len(values)}H", *values)


GREY = [value for value in BLACK_TO_WHITE for _ in range(3)]
BYTES = bytes(value >> 8 for value in BLACK_TO_WHITE)
PALETTE = chunk(b"PLTE", bytes(channel for byte in BYTES for channel in (byte,) * 3))
FORMS = {
    "1-bit": (png(1, 0, b"\x50"), [0, 255, 0, 255]),
    "2-bit": (png(2, 0, b"\x1b"), [0, 85, 170, 255]),
    "4-bit": (png(4, 0, b"\x01\x8f"), [0, 17, 136, 255]),
    "8-bit": (png(8, 0, BYTES), [0, 18, 128, 255]),
    "16-bit": (png(16, 0, words(*BLACK_TO_WHITE)), [0, 18, 128, 255]),
    "palette": (png(2, 3, b"\x1b", PALETTE), [0, 18, 128, 255]),
    "colours": (png(8, 2, bytes(v >> 8 for v in GREY)), [0, 18, 128, 255]),
    "16-bit colours": (png(16, 2, words(*GREY)), [0, 18, 128, 255]),
    "alpha": (png(8, 4, b"".join(bytes([b, 255]) for b in BYTES)), [0, 18, 128, 255]),
    "16-bit alpha": (
        png(16, 4, b"".join(words(value, 0xFFFF) for value in BLACK_TO_WHITE)),
        [0, 18, 128, 255],
    ),
    "colours and alpha": (
        png(8, 6, b"".join(bytes([b, b, b, 255]) for b in BYTES)),
        [0, 18, 128, 255],
    ),
    "16-bit, none of the transparent value": (
        png(16, 0, words(*BLACK_TO_WHITE), chunk(b"tRNS", words(18))),
        [0, 18, 128, 255],
    ),
    "opaque palette": (png(2, 3, b"\x1b", PALETTE, chunk(b"tRNS", b"\xff" * 4)), [0, 18, 128, 255]),
}
TRANSPARENT = {
    "alpha": png(8, 4, b"".join(bytes([b, 254]) for b in BYTES)),
    "colours and alpha": png(8, 6, b"".join(bytes([b, b, b, 0]) for b in BYTES)),
    "palette": png(2, 3, b"\x1b", PALETTE, chunk(b"tRNS", b"\0\xff")),
    "a grey": png(8, 0, BYTES, chunk(b"tRNS", words(18))),
    "a grey of 16 bits": png(16, 0, words(*BLACK_TO_WHITE), chunk(b"tRNS", words(0x1234))),
    "a colour": png(8, 2, bytes(v >> 8 for v in GREY), chunk(b"tRNS", words(18, 18, 18))),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_png_is_read_in_8_bits(form):
    content, expected = FORMS[form]
    assert to_grey(read_image(io.BytesIO(content), "x.png")).tolist() == [expected]


@pytest.mark.parametrize("form", TRANSPARENT)
def test_transparent_images_are_refused(form):
    with pytest.raises(UserError, match=r"x\.png has transparent pixels"):
        read_image(io.BytesIO(TRANSPARENT[form]), "x.png")


def test_images_of_other_sizes_and_formats_are_told():
    with pytest.raises(UserError, match="4 x 1 pixels, expected 32 x 32"):
        read_image(io.BytesIO(FORMS["8-bit"][0]), "x.png", side=32)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1 << 14, 1 << 13, 8, 0, 0, 0, 0))
    with pytest.raises(UserError, match=r"x\.png"):
        read_image(io.BytesIO(png(8, 0, b"")[:8] + header), "x.png")
    picture = io.BytesIO()
    Image.new("L", (4, 1)).save(picture, format="JPEG")
    with pytest.raises(UserError, match="not a readable PNG image"):
        read_image(picture, "x.jpeg")
    assert read_image(picture, "x.jpeg", formats=("PNG", "JPEG")).size == (4, 1)


# --- pickles


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("keys", [bytes, str])
@pytest.mark.parametrize("labels", ["list", "array", "uint8 array", "list of NumPy numbers"])
def test_batches_of_any_protocol_with_any_keys_are_read(batches, keys, labels, protocol):
    _, content = batches
    colours, classes = content["data_batch_1"]
    kinds = {
        "list": list,
        "array": np.array,
        "uint8 array": lambda values: np.array(values, np.uint8),
        "list of NumPy numbers": lambda values: list(np.array(values)),
    }
    data = colours.transpose(0, 3, 1, 2).reshape(-1, 3072)
    batch = {"data": data, "labels": kinds[labels](classes), "filenames": ["a"]}
    if keys is bytes:
        batch = {key.encode(): value for key, value in batch.items()}
    file = io.BytesIO(pickle.dumps(batch, protocol=protocol))
    images, found = read_batch(file, "data_batch_1")
    np.testing.assert_array_equal(images, luma(colours).reshape(-1, 1024))
    assert found.tolist() == classes


def test_a_pickle_that_claims_much_costs_nothing():
    size = (1 << 32).to_bytes(8, "little")
    for opcode in (pickle.BYTEARRAY8, pickle.BINBYTES8, pickle.BINUNICODE8):
        tracemalloc.start()
        with pytest.raises(UserError, match="data_batch_1 is not a batch"):
            read_pickle(io.BytesIO(b"\x80\x05" + opcode + size), "data_batch_1", "batch")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


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
        pickle.dumps({b"data": np.zeros((2, 3072), np.float32), b"labels": [1, 2]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.int16), b"labels": [1, 2]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2.0]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 1 << 70]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": np.array([1.0, 2.0])}),
        pickle.dumps({b"data": np.array([{}]), b"labels": [1]}),
        pickle.dumps([1, 2]),
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
