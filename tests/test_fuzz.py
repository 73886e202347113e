"""Readers of files, given damaged ones: they raise a UserError or read on, nothing else.

Of each reader ``COUNT`` inputs by default and ``MANY`` with ``-m slow``: a valid file with parts
overwritten, inserted, removed or cut off, or bytes of no form at all. No input may take more than
``SECONDS`` of processor time, nor all of a reader's together more than ``MEGABYTES`` of memory.
"""

import gzip
import io
import json
import pickle
import resource
import shutil
import signal
import struct
import tarfile
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fairseq_csp import checkpoints
from fairseq_csp.data.pixels import load_labels, load_pixels
from fairseq_csp.data.tokens import load_dictionary, load_tokens
from fairseq_csp.errors import UserError
from fairseq_csp.tasks.lra import _is_limited
from preprocess import aan, cifar10, listops, pathfinder
from preprocess.archives import RawRelease
from preprocess.images import read_image
from tests.helpers.generated import write_text

COUNT = 500
MANY = 5_000
SECONDS = 5
MEGABYTES = 300

count = pytest.mark.parametrize("count", [COUNT, pytest.param(MANY, marks=pytest.mark.slow)])
# what tends to be misread: extreme numbers, the ends of words, lines and literals
PIECES = [
    *(struct.pack("<q", number) for number in (0, 1, -1, 10**15, 2**63 - 1, -(2**63))),
    *(struct.pack("<i", number) for number in (2**31 - 1, -(2**31))),
    *(b"\x00", b"\xff", b"\n", b"\r", b"\t", b" ", b"'", b"\\", b"\\x", b"b'", b"0", b"-1", b"256"),
    *(b"9" * 30, b"1e9", b"nan", b"\xc3", b"\xe2\x80\xa8", "²".encode(), b"(" * 50, b"[" * 5000),
]


@st.composite
def damaged(draw, valid):
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    content = bytearray(valid)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 8))
        content[place : place + length] = draw(st.sampled_from(PIECES) | st.binary(max_size=8))
    end = draw(st.integers(0, len(content))) if draw(st.booleans()) else len(content)
    return bytes(content[:end])


@contextmanager
def bounded():
    """Fail where the block takes too long, by the processor's time and not by the wall's."""

    def fail(*signal_and_frame):
        raise AssertionError(f"more than {SECONDS} s")

    previous = signal.signal(signal.SIGPROF, fail)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def fuzz(read, valid, count):
    """Call ``read`` with each input; it must take the valid one."""
    read(valid)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls = 0

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(valid))
    def check(content):
        nonlocal calls
        calls += 1
        with bounded():
            try:
                read(content)
            except UserError as error:
                assert str(error)

    check()
    assert calls >= count * 0.9
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEGABYTES * 1024, f"{grown / 1024:.0f} MiB"


@count
@pytest.mark.parametrize("suffix", ["idx", "bin"])
def test_tokens(suffix, count, tmp_path):
    prefix = write_text(tmp_path / "data") / "src-bin" / "train"
    dictionary = Dictionary.load(str(prefix.parent / "dict.txt"))
    path = prefix.with_suffix(f".{suffix}")

    def read(content):
        path.write_bytes(content)
        dataset = load_tokens(str(prefix), dictionary)
        for index in range(len(dataset)):
            assert 0 <= dataset[index].min() <= dataset[index].max() < len(dictionary)

    fuzz(read, path.read_bytes(), count)


@count
def test_dictionary(count, tmp_path):
    path = tmp_path / "dict.txt"

    def read(content):
        path.write_bytes(content)
        load_dictionary(str(path))

    fuzz(read, b"[MAX 12\n] 11\n7 3\nmadeupword0000 0\n", count)


@count
@pytest.mark.parametrize("name", ["input/train.npy", "input/train.src"])
def test_images(name, count, tmp_path):
    (tmp_path / "input").mkdir()
    path = tmp_path / name

    def read(content):
        path.write_bytes(content)
        pixels = load_pixels(tmp_path, "train")
        assert pixels.dtype == np.uint8 and pixels.size
        assert pixels.nbytes <= len(content)
        pixels.max()

    fuzz(read, array_bytes(np.eye(3, 5, dtype=np.uint8)) if ".npy" in name else TEXT, count)


@count
@pytest.mark.parametrize("name", ["label/train.npy", "label/train.label"])
def test_labels(name, count, tmp_path):
    (tmp_path / "label").mkdir()
    path = tmp_path / name

    def read(content):
        path.write_bytes(content)
        assert load_labels(tmp_path, "train").min(initial=0) >= 0

    fuzz(read, array_bytes(np.arange(5)) if ".npy" in name else b"0\n1\n9\n", count)


TEXT = b"0 1 2\n3 255 5\n"


def array_bytes(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@count
def test_listops_tsv(count, tmp_path):
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw" / "basic_train.tsv"
    directory = tmp_path / "prepared"

    def read(content):
        path.write_bytes(content)
        directory.mkdir()
        try:
            listops.read_release(RawRelease(path.parent), directory)
        finally:
            shutil.rmtree(directory)

    valid = b"Source\tTarget\n( ( [MAX 1 ) 2 ] )\t2\n[MED 3 4 ]\t3\n"
    fuzz(read, valid, count)


@count
def test_aan_tsv(count, tmp_path):
    path = tmp_path / "new_aan_pairs.train.tsv"

    def read(content):
        path.write_bytes(content)
        for _, label, text, other in aan.read_pairs(RawRelease(tmp_path)):
            assert label in (0, 1) and isinstance(text, bytes) and isinstance(other, bytes)

    valid = b"1.0\tA\tB\tb'it\\'s \\x00\\n'\tb\"it's\"\n0.0\tC\tD\tb''\tb'\\\\'\n"
    fuzz(read, valid, count)


@count
def test_pathfinder_metadata(count):
    positions = {"imgs/0/sample_0.png": 0, "imgs/0/sample_1.png": 1}

    def read(content):
        level = pathfinder._Level(io.BytesIO(), positions, {0: ("metadata/0.npy", content)})
        places, labels = pathfinder._in_order_of_metadata(level)
        assert len(places) == len(labels)

    valid = b"imgs/0 sample_0.png 0 1 1.8 6 2.0 5 1 1 1 2\nimgs/0 sample_1.png 1 0 1.8\n"
    fuzz(read, valid, count)


@count
def test_cifar_batch(count):
    def read(content):
        images, labels = cifar10.read_batch(io.BytesIO(content), "data_batch_1")
        assert len(images) == len(labels)

    batch = {b"data": np.zeros((1, 3072), np.uint8), b"labels": [7], b"filenames": [b"a.png"]}
    fuzz(read, pickle.dumps(batch, protocol=2), count)


@count
def test_png(count):
    def read(content):
        assert read_image(io.BytesIO(content), "sample_0.png", side=8).size == (8, 8)

    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(file, format="PNG")
    fuzz(read, file.getvalue(), count)


@count
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives(kind, count, tmp_path):
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/b.txt", b"content" * 9)
    else:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            member = tarfile.TarInfo("a/é" + "b" * 120)
            member.size = 63
            archive.addfile(member, io.BytesIO(b"content" * 9))
    valid = gzip.compress(file.getvalue(), mtime=0) if kind == "tar.gz" else file.getvalue()
    path = tmp_path / "archive"

    def read(content):
        path.write_bytes(content)
        for _, member in RawRelease(path).files(lambda name: name, "files"):
            while member.read(1 << 16):
                pass

    fuzz(read, valid, count)


@count
def test_summary(count, tmp_path):
    def read(content):
        (tmp_path / "summary.json").write_bytes(content)
        _is_limited(str(tmp_path))

    fuzz(read, json.dumps({"name": "x", "limited": True, "splits": [1, {}]}).encode(), count)


@count
def test_checkpoint(count, tmp_path):
    file = io.BytesIO()
    state = {
        "args": None,
        "cfg": {"model": {"arch": "x"}},
        "model": {"weight": torch.ones(3)},
        "optimizer_history": [
            {
                "criterion_name": "x",
                "optimizer_name": "y",
                "num_updates": 3,
                "lr_scheduler_state": {},
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 1}},
    }
    torch.save(state, file)
    path = tmp_path / "checkpoint.pt"

    def read(content):
        path.write_bytes(content)
        assert checkpoints.load(path)["model"]

    fuzz(read, file.getvalue(), count)
