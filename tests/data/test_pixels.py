import multiprocessing
import os
import pickle
import time

import numpy as np
import psutil
import pytest
import torch

from fairseq_csp.data.pixels import PixelDataset, load_labels, load_pixels
from fairseq_csp.errors import UserError

IMAGES = np.array([[0, 1, 2, 255], [9, 8, 7, 6], [10, 100, 200, 0]], dtype=np.uint8)
LABELS = np.array([3, 0, 9])


@pytest.fixture(params=["binary", "text"])
def directory(request, tmp_path):
    """A published set of one split, in either form."""
    write(tmp_path, request.param)
    return tmp_path


def write(directory, form, images=IMAGES, labels=LABELS):
    for kind in ("input", "label"):
        (directory / kind).mkdir(exist_ok=True)
    if form == "binary":
        np.save(directory / "input" / "test.npy", images)
        np.save(directory / "label" / "test.npy", labels)
    else:
        lines = (" ".join(map(str, image)) for image in images.tolist())
        (directory / "input" / "test.src").write_text("\n".join(lines) + "\n")
        (directory / "label" / "test.label").write_text("".join(f"{x}\n" for x in labels))


def test_both_forms_load_alike(directory):
    pixels = load_pixels(directory, "test")
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, IMAGES)
    labels = load_labels(directory, "test", images=3)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, LABELS)


def test_items_are_scaled_and_normalised(directory):
    dataset = PixelDataset(directory, "test", mean=0.4, std=0.2)
    assert len(dataset) == 3
    assert dataset[0].dtype == torch.float32
    expected = (torch.from_numpy(IMAGES).float() / 255 - 0.4) / 0.2
    torch.testing.assert_close(dataset.collater([dataset[i] for i in range(3)]), expected)
    assert dataset.sizes.tolist() == [4, 4, 4]
    assert dataset.num_tokens(1) == dataset.size(1) == 4


def test_a_worker_process_gets_the_same_items(directory):
    dataset = PixelDataset(directory, "test", mean=0.5, std=0.5)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        item = pool.apply(dataset.__getitem__, (2,))
    torch.testing.assert_close(item, dataset[2])


def test_binary_form_is_preferred(tmp_path):
    write(tmp_path, "binary")
    write(tmp_path, "text", images=IMAGES[::-1], labels=LABELS[::-1])
    np.testing.assert_array_equal(load_pixels(tmp_path, "test"), IMAGES)
    np.testing.assert_array_equal(load_labels(tmp_path, "test"), LABELS)


def test_large_sets_cost_neither_memory_nor_time(tmp_path):
    (tmp_path / "input").mkdir()
    size = (20_000, 16_384)
    np.lib.format.open_memmap(tmp_path / "input" / "test.npy", "w+", np.uint8, size)
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    dataset = PixelDataset(tmp_path, "test", mean=0.5, std=0.5)
    assert dataset[19_999].shape == (16_384,)
    assert time.perf_counter() - start < 1
    assert psutil.Process().memory_info().rss - before < 50e6
    assert len(pickle.dumps(dataset)) < 1e6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2\n3 256\n", "line 2: '256'"),
        ("1 -2\n", "line 1: '-2'"),
        ("1 2.0\n", "line 1: '2.0'"),
        ("1 2\n3\n", "line 2: 1 pixels, the first line has 2"),
        ("1 2\n\n1 2\n", "line 2: the line is empty"),
        ("", "holds no images"),
    ],
)
def test_bad_text_images_are_named(tmp_path, text, message):
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "test.src").write_text(text)
    with pytest.raises(UserError, match=r"test\.src") as caught:
        load_pixels(tmp_path, "test")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["1\n1.5\n", "1\n\n1\n", "1\n-1\n", "1\nnan\n"])
def test_bad_text_labels_are_named(tmp_path, text):
    (tmp_path / "label").mkdir()
    (tmp_path / "label" / "test.label").write_text(text)
    with pytest.raises(UserError, match=r"test\.label, line 2"):
        load_labels(tmp_path, "test")


def test_text_that_an_editor_saved_is_read_alike(tmp_path):
    write(tmp_path, "text")
    for path in tmp_path.rglob("test.*"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\n")
    np.testing.assert_array_equal(load_pixels(tmp_path, "test"), IMAGES)
    np.testing.assert_array_equal(load_labels(tmp_path, "test"), LABELS)


def test_a_file_that_is_cut_short_while_it_is_in_use_is_told(tmp_path):
    write(tmp_path, "binary", images=np.ones((9, 4096), np.uint8))
    path = tmp_path / "input" / "test.npy"
    dataset = PixelDataset(tmp_path, "test", mean=0.5, std=0.5)
    os.truncate(path, path.stat().st_size - 4096)
    assert dataset[7].shape == (4096,)
    with pytest.raises(UserError, match=r"test\.npy became shorter while it was in use"):
        dataset[8]
    with pytest.raises(IndexError):
        dataset[9]


def test_arrays_of_another_order_or_length_are_refused(tmp_path):
    (tmp_path / "input").mkdir()
    path = tmp_path / "input" / "test.npy"
    np.save(path, np.asfortranarray(IMAGES))
    with pytest.raises(UserError, match="expected numbers, row after row"):
        load_pixels(tmp_path, "test")
    np.save(path, IMAGES)
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(UserError, match="tells of 12 bytes, but 13 follow"):
        load_pixels(tmp_path, "test")


def test_bad_binary_files_are_named(tmp_path):
    write(tmp_path, "binary", images=IMAGES.astype(np.int32), labels=np.array([-1, 0, 0]))
    with pytest.raises(UserError, match=r"input/test\.npy holds int32"):
        load_pixels(tmp_path, "test")
    with pytest.raises(UserError, match=r"label/test\.npy: label -1"):
        load_labels(tmp_path, "test")
    write(tmp_path, "binary")
    path = tmp_path / "input" / "test.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"input/test\.npy is not a complete"):
        load_pixels(tmp_path, "test")
    np.save(path, np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"input/test\.npy"):
        load_pixels(tmp_path, "test")


def test_missing_split_and_wrong_number_of_labels(directory):
    with pytest.raises(UserError, match=r"neither train\.npy nor train\.src"):
        load_pixels(directory, "train")
    with pytest.raises(UserError, match="3 labels for 4 images"):
        load_labels(directory, "test", images=4)
