"""Files from elsewhere run no code, start no program, and take no more memory than their size.

Each test first shows that its file would do so where it is read without care.
"""

import argparse
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq_cli import train as fairseq_train
from fairseq_cli import validate as fairseq_validate
from PIL import EpsImagePlugin, Image

from fairseq_csp.data import files as data_files
from fairseq_csp.errors import UserError
from preprocess import aan, cifar10, imdb
from preprocess.archives import RawRelease
from preprocess.images import read_image
from tests.helpers.commands import ENVIRONMENT, ROOT, SMALL, call, generate_listops
from tests.helpers.generated import write_text
from tests.helpers.running import TINY, TRAINING


class RunsCode:
    """Makes a directory where its pickle is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


@pytest.fixture
def ran(tmp_path):
    return tmp_path / "code-was-run"


@pytest.fixture(params=["archive", "legacy", "pickle"])
def checkpoint(request, tmp_path, ran):
    """A checkpoint whose flags run code, in each form that torch reads."""
    path = tmp_path / "checkpoint.pt"
    state = {"args": RunsCode(ran), "model": {}, "cfg": None}
    if request.param == "pickle":
        path.write_bytes(pickle.dumps(state, protocol=2))
        pickle.loads(path.read_bytes())
    else:
        torch.save(state, path, _use_new_zipfile_serialization=request.param == "archive")
        torch.load(path, weights_only=False)
    ran.rmdir()
    return path


def run(monkeypatch, command, *words):
    monkeypatch.setattr(sys, "argv", ["fairseq", *map(str, words)])
    with pytest.raises(UserError) as caught:
        command.cli_main()
    return str(caught.value)


@pytest.mark.parametrize("flag", ["--restore-file", "--finetune-from-model"])
def test_training_refuses_a_checkpoint_that_runs_code(flag, checkpoint, ran, tmp_path, monkeypatch):
    data = write_text(tmp_path / "data")
    words = [data, *TRAINING, *TINY, "--task", "lra-text", "--arch", "mega_lra_imdb"]
    words += [flag, checkpoint, "--save-dir", tmp_path / "save"]
    message = run(monkeypatch, fairseq_train, *words)
    assert f"{checkpoint} is refused" in message and "\n" not in message
    assert not ran.exists()


def test_validation_refuses_a_checkpoint_that_runs_code(checkpoint, ran, tmp_path, monkeypatch):
    data = write_text(tmp_path / "data")
    words = [data, "--path", checkpoint, "--cpu", "--user-dir", ROOT / "fairseq_csp"]
    message = run(monkeypatch, fairseq_validate, *words)
    assert f"{checkpoint} is refused" in message and "\n" not in message
    assert not ran.exists()


def test_checkpoints_may_hold_flags_and_nothing_else():
    allowed = torch.serialization.get_safe_globals()
    assert [x for x in allowed if not x.__module__.startswith("torch.")] == [argparse.Namespace]


def pickled(function, *arguments):
    class Call:
        def __reduce__(self):
            return function, arguments

    return pickle.dumps({b"data": Call(), b"labels": [1]}, protocol=2)


def test_a_cifar_batch_runs_no_code(ran):
    for function, *arguments in (
        (Path.mkdir, ran),
        (eval, f"__import__('pathlib').Path({str(ran)!r}).mkdir()"),
        (exec, f"import pathlib; pathlib.Path({str(ran)!r}).mkdir()"),
    ):
        content = pickled(function, *arguments)
        pickle.loads(content)
        ran.rmdir()
        with pytest.raises(UserError, match="the pickle asks for .*, which is refused"):
            cifar10.read_batch(io.BytesIO(content), "data_batch_1")
        assert not ran.exists()


def test_a_cifar_batch_calls_nothing_of_numpy():
    """A few bytes that ask NumPy for an array of 10^11, or of objects."""
    for arguments in ((10**11,), ((10**9, 99),), ((5,), "O")):
        with pytest.raises(UserError, match="is not a CIFAR-10 batch"):
            cifar10.read_batch(io.BytesIO(pickled(np.ndarray, *arguments)), "data_batch_1")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x80\x02]r\x00\x00\x00\x02.", id="memo"),
        pytest.param(b"\x80\x05\x95" + struct.pack("<Q", 10**12) + b".", id="frame"),
        pytest.param(b"\x80\x04\x8e" + struct.pack("<Q", 10**12) + b".", id="bytes"),
    ],
)
def test_a_cifar_batch_takes_no_more_memory_than_it_has(content):
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="is not a CIFAR-10 batch"):
            cifar10.read_batch(io.BytesIO(content), "data_batch_1")
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_nested_labels_are_not_unfolded():
    """Forty lists that each hold the one before twice stand for 10^12 numbers."""
    labels = [1, 2]
    for _ in range(40):
        labels = [labels, labels]
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": labels}
    with pytest.raises(UserError, match="the labels are no list or array of whole numbers"):
        cifar10.read_batch(io.BytesIO(pickle.dumps(batch, protocol=2)), "data_batch_1")


@pytest.mark.parametrize(
    "text",
    [
        "b'' + bytes(__import__('pathlib').Path('PATH').mkdir() or b'')",
        "b'' or __import__('pathlib').Path('PATH').mkdir() or b''",
    ],
)
def test_a_literal_is_not_evaluated(text, ran, tmp_path):
    text = text.replace("PATH", str(ran))
    eval(text)
    ran.rmdir()
    (tmp_path / "new_aan_pairs.train.tsv").write_text(f"1.0\tA\tB\t{text}\tb''\n")
    with pytest.raises(UserError, match="line 1: .* is not a Python bytes literal"):
        list(aan.read_pairs(RawRelease(tmp_path)))
    assert not ran.exists()


def test_an_image_starts_no_program(monkeypatch):
    """PIL hands PostScript to Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: pytest.fail("started"))
    postscript = io.BytesIO()
    Image.new("RGB", (32, 32)).save(postscript, format="EPS")
    with pytest.raises(pytest.fail.Exception, match="started"):
        Image.open(postscript).load()
    with pytest.raises(UserError, match="is not a readable PNG image"):
        read_image(postscript, "sample_0.png", side=32)


@pytest.mark.parametrize("side", [5_000, 60_000])
def test_an_image_larger_than_expected_is_not_decoded(side, monkeypatch):
    small = io.BytesIO()
    Image.new("L", (8, 8)).save(small, format="PNG")
    content = bytearray(small.getvalue())
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    content[12:33] = header + struct.pack(">I", zlib.crc32(header))
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(UserError, match="pixels"):
        read_image(io.BytesIO(content), "sample_0.png", side=32)


def test_a_small_archive_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "aclImdb.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("aclImdb/train/pos/0_9.txt")
        member.size = 3 << 20
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    assert path.stat().st_size < 1 << 15
    with pytest.raises(UserError, match=r"0_9\.txt is larger than 1 MiB"):
        imdb.read_reviews(RawRelease(path), None, 0)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "LARGEST", 1 << 20)
    (tmp_path / "new_aan_pairs.train.tsv").write_bytes(b"x" * (3 << 20))
    with pytest.raises(UserError, match=r"train\.tsv, line 1: it is longer than 1 MiB"):
        list(aan.read_pairs(RawRelease(tmp_path)))


NASTY = "-a \"b\" 'c' $(touch ran) `touch ran`; touch ran & $HOME \\\n%s #*"


def test_train_lra_takes_any_path(tmp_path):
    """Quotes, substitutions, newlines and leading dashes in relative paths are parts of names."""
    data = generate_listops(tmp_path / f"{NASTY} data", train_size=8, other_size=8)
    answer = subprocess.run(
        ["bash", ROOT / "train_lra.sh", "model_name=mega", "dataset_name=listops", "preset=demo",
         f"data_dir={data.name}", f"save_dir={NASTY} --help save", "--", *SMALL,
         "--max-update", "1"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "| test accuracy " in answer.stdout
    assert (tmp_path / f"{NASTY} --help save" / "checkpoint_best.pt").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [data.name, f"{NASTY} --help save"]
    )
    assert not (ROOT / "ran").exists()


def test_train_lra_takes_no_path_that_fairseq_would_replace():
    """Its configuration reads ${...}, the environment's variables among it, even in paths."""
    words = ["model_name=mega", "dataset_name=listops", "data_dir=${oc.env:HOME}"]
    answer = call("bash", ROOT / "train_lra.sh", *words)
    assert answer.returncode == 2
    assert "data_dir has ${ in it, which fairseq would replace" in answer.stderr
