"""Files from elsewhere run no code, start no program, and take no more memory than their size.

Each test first shows that its file would do so where it is read without care.
"""

import argparse
import copy
import io
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq_cli import train as fairseq_train
from fairseq_cli import validate as fairseq_validate
from PIL import EpsImagePlugin, Image

from fairseq_csp import checkpoints
from fairseq_csp.data import files as data_files
from fairseq_csp.errors import UserError
from fairseq_csp.fairseq_patches import checkpoint_reading
from preprocess import aan, cifar10, imdb
from preprocess.archives import RawRelease
from preprocess.images import read_image
from tests.helpers.commands import ENVIRONMENT, ROOT, SMALL, call, generate_listops
from tests.helpers.generated import write_text
from tests.helpers.running import TINY, TRAINING
from tests.test_kill_and_resume import assert_equal


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


GOOD = ROOT / "tests" / "golden" / "earlier" / "mega.pt"
MAKES_A_DIRECTORY = "__import__('pathlib').Path({!r}).mkdir()"


def changed(path, change, **options):
    """Write a good checkpoint with a change."""
    state = torch.load(GOOD, weights_only=False)
    change(state)
    torch.save(state, path, **options)
    return path


def flags(group, **values):
    return lambda state: state["cfg"].update({group: values})


def flag(group, **values):
    return lambda state: state["cfg"][group].update(values)


def legacy(**values):
    values = {"task": "lra-text", "criterion": "lra_cross_entropy", "data": "data", **values}
    return lambda state: state.update(args=argparse.Namespace(**values), cfg=None)


def first_weight(change):
    def apply(state):
        name = next(iter(state["model"]))
        state["model"][name] = change(state["model"][name])

    return apply


# fmt: off
CHANGES = {
    # fairseq's own models, losses and tasks, which evaluate text
    "wav2vec2": (flags("model", _name="wav2vec2", conv_feature_layers="CODE"), "a model of this"),
    "wav2vec": (flags("model", _name="wav2vec", conv_feature_layers="CODE"), "a model of this"),
    "named by its key": (flags("model", wav2vec2={"conv_feature_layers": "CODE"}), "a model of"),
    "ctc": (flags("criterion", _name="ctc", wer_args="CODE"), "only a criterion of this"),
    "translation": (flags("task", _name="translation", data="data"), "only a task of this"),
    "legacy fconv": (legacy(arch="fconv", encoder_layers="CODE"), "only a model of this"),
    "legacy fconv_lm": (legacy(arch="fconv_lm", decoder_layers="CODE"), "only a model of this"),
    "legacy text": (legacy(arch="mega_lra_listop", lr="CODE", n_dim="CODE"), "--n-dim is"),
    # values of other types, out of their range, or replaced by fairseq
    "environment": (flag("task", data="${oc.env:HOME}"), "--data is '${oc.env:HOME}'"),
    "missing": (flag("task", data="???"), "--data is '???'"),
    "text for a number": (flag("model", encoder_layers="1"), "which is no int"),
    "truth for a number": (flag("model", encoder_layers=True), "which is no int"),
    "a fraction": (flag("model", encoder_layers=1.5), "which is no int"),
    "number for text": (flag("model", norm_type=3), "--norm-type is '3'; it must be one of"),
    "list for a number": (flag("model", dropout=[0.1]), "which is no float"),
    "unknown choice": (flag("model", sen_rep_type="max"), "which is no"),
    "nan": (flag("model", dropout=float("nan")), "--dropout is nan, but must be"),
    "many layers": (flag("model", encoder_layers=10**9), "--encoder-layers is 1000000000"),
    "more layers": (flag("model", encoder_layers=900), "its flags and weights differ"),
    "wide": (flag("model", encoder_embed_dim=65_536), "its flags and weights differ"),
    "long": (flag("model", max_positions=1_000_000), "its flags and weights differ"),
    "many classes": (flag("model", sentence_class_num=99_999), "its flags and weights differ"),
    # parts that are missing or of another kind
    "no model": (lambda state: state.pop("model"), "model is missing"),
    "empty model": (lambda state: state.update(model={}), "model holds no weights"),
    "a list for a model": (lambda state: state.update(model=[1]), "model is no table"),
    "text for a weight": (first_weight(lambda weight: "x"), "model holds no weights"),
    "a sparse weight": (first_weight(torch.Tensor.to_sparse), "a tensor without numbers"),
    "a whole number's weight": (first_weight(torch.Tensor.long), "is torch.int64"),
    "a weight from nothing": (first_weight(lambda weight: torch.zeros(1).expand(10**5, 10**5)),
                              "claims more numbers than the file holds"),
    "no flags": (lambda state: state.update(cfg=None), "it has no flags"),
    "text for flags": (lambda state: state.update(cfg="x"), "cfg is no table"),
    "no history": (lambda state: state.update(optimizer_history=[]), "optimizer_history is miss"),
    "text for updates": (lambda state: state["optimizer_history"][-1].update(num_updates="2"),
                         "num_updates is no count"),
    "negative updates": (lambda state: state["optimizer_history"][-1].update(num_updates=-2),
                         "num_updates is no count"),
    "no place": (lambda state: state["extra_state"].pop("train_iterator"), "train_iterator is mis"),
    "text for an epoch": (lambda state: state["extra_state"]["train_iterator"].update(epoch="1"),
                          "epoch is no count"),
    "text for the best": (lambda state: state["extra_state"].update(best="x"), "best is no number"),
    "text for a moment": (lambda state: state["last_optimizer_state"]["state"][0].update(step="x"),
                          "step of the optimizer is no number"),
    "no groups": (lambda state: state["last_optimizer_state"].pop("param_groups"), "param_groups"),
    "text for a mean": (lambda state: state["task_state"].update(pixel_mean=["x"]), "no numbers"),
    "numbers for symbols": (lambda state: state["task_state"].update(symbols=[1]), "no names"),
    "a number of many digits": (lambda state: state.update(x=10**400), "more than 64 bits"),
    "a set": (lambda state: state.update(x={1}), "holds a set"),
    "bytes": (lambda state: state.update(x=bytearray(3)), "holds a bytearray"),
    "unfolding lists": (lambda state: state.update(x=doubled(40)), "nested too deeply"),
    "many objects": (lambda state: state.update(x=[[] for _ in range(10**6)]), "1,000,000 objects"),
}
# fmt: on


def doubled(times):
    value = [0]
    for _ in range(times):
        value = [value, value]
    return value


def with_code(value, code):
    """Put code in the place of CODE in flags."""
    if isinstance(value, argparse.Namespace):
        return argparse.Namespace(**with_code(vars(value), code))
    if isinstance(value, dict):
        return {key: with_code(inner, code) for key, inner in value.items()}
    return code if isinstance(value, str) and value == "CODE" else value


@pytest.mark.parametrize("name", CHANGES)
def test_a_hostile_or_odd_checkpoint_is_refused(name, ran, tmp_path, monkeypatch):
    change, message = CHANGES[name]

    def apply(state):
        change(state)
        for key in ("cfg", "args"):
            if key in state:
                state[key] = with_code(state[key], MAKES_A_DIRECTORY.format(str(ran)))

    path = changed(tmp_path / "checkpoint.pt", apply)
    monkeypatch.chdir(GOOD.parent)
    with pytest.raises(UserError) as caught:
        checkpoint_utils.load_model_ensemble_and_task([str(path)])
    found = str(caught.value)
    assert message in found and str(path) in found and "\n" not in found
    assert not ran.exists()


def test_what_is_not_used_is_left_out(tmp_path):
    """Flags of logging, meters and what is unknown neither stop a checkpoint nor are they kept."""

    def change(state):
        state["cfg"]["common"].update(log_format="${oc.env:HOME}", seed="x")
        state["extra_state"]["metrics"] = {"default": [(1, "x", "OrderedDict", {})]}
        state["unknown"] = {"a": [1, 2]}

    state = checkpoints.load(changed(tmp_path / "checkpoint.pt", change))
    assert "unknown" not in state and "metrics" not in state["extra_state"]
    cfg = checkpoint_reading.configuration(state)
    assert cfg.common.log_format is None and cfg.common.seed == 1


def test_a_flipped_bit_is_noticed(tmp_path):
    """What is read is what was written, wherever the file is damaged."""
    content, path = GOOD.read_bytes(), tmp_path / "checkpoint.pt"
    draw, whole = random.Random(0), checkpoints.load(GOOD)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        bit = draw.randrange(8 * len(content))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            state = checkpoints.load(path)
        except UserError:
            refused += 1
        else:
            assert_equal(state, whole)
    # the others are in the padding between parts
    assert refused > 150


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    large = io.BytesIO()
    torch.save({"model": {"weight": torch.zeros(30_000_000)}}, large)
    path = tmp_path / "checkpoint.pt"
    with (
        zipfile.ZipFile(large) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    assert path.stat().st_size < 1_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="is compressed, which torch never does"):
        checkpoints.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_parts_that_overlap_are_refused(tmp_path):
    """Entries of an archive that all stand for the same bytes."""
    path = tmp_path / "checkpoint.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/data/0", bytes(100_000))
        member = archive.infolist()[-1]
        for number in range(1, 50):
            other = copy.copy(member)
            other.filename = f"x/data/{number}"
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
    with pytest.raises(UserError, match="its parts overlap"):
        checkpoints.load(path)


@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "missing"])
def test_what_is_no_file_is_not_waited_for(kind, tmp_path):
    path = tmp_path / "checkpoint.pt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="no regular file|a directory|No such file"):
        checkpoints.load(path)


def test_torch_allows_no_more_than_it_did():
    before = set(torch.serialization.get_safe_globals())
    checkpoints.load(GOOD)
    assert set(torch.serialization.get_safe_globals()) == before
    assert argparse.Namespace not in before


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


NASTY = "-a \"b\" 'c' $(touch ran) `touch ran`; touch ran & $HOME \\%s #*"


def test_train_lra_takes_any_path(tmp_path):
    """Quotes, substitutions and leading dashes in relative paths are parts of names."""
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
