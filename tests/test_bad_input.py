"""Bad input ends in one clear sentence before training starts, and leaves nothing behind."""

import dataclasses
import os
import re
import shutil
import struct
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from fairseq.optim import OPTIMIZER_DATACLASS_REGISTRY
from fairseq.optim.lr_scheduler import LR_SCHEDULER_DATACLASS_REGISTRY
from fairseq.trainer import Trainer
from fairseq_cli import train as fairseq_train
from fairseq_cli import validate as fairseq_validate

from fairseq_csp.flags import NUMBERS, check_values
from fairseq_csp.tasks.lra import LRATask
from preprocess.__main__ import main as preprocess
from tests.helpers.commands import ROOT, call, training_command
from tests.helpers.generated import write_images, write_text
from tests.helpers.running import TINY, TRAINING, logged, train

VALIDATION = ["--user-dir", ROOT / "fairseq_csp", "--cpu"]
HEADER = 26  # bytes of an index before the lengths
FLAGS = {
    "text": ["--task", "lra-text", "--arch", "mega_lra_imdb"],
    "pairs": ["--task", "lra-text", "--arch", "mega_lra_aan"],
    "image": ["--task", "lra-image", "--arch", "mega_lra_pf32"],
    "src": ["--task", "lra-image", "--arch", "mega_lra_pf32"],
}


@dataclass
class Case:
    """Input of one kind, words of the message, damage to the data, flags with and without."""

    name: str
    kind: str
    words: list[str]
    damage: object = lambda data: None
    flags: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)


def write(path, content):
    def damage(data):
        (data / path).write_bytes(content)

    return damage


def cut(path, length):
    def damage(data):
        content = (data / path).read_bytes()
        (data / path).write_bytes(content[:length])

    return damage


def overwrite(path, offset, content):
    def damage(data):
        whole = bytearray((data / path).read_bytes())
        whole[offset : offset + len(content)] = content
        (data / path).write_bytes(whole)

    return damage


def remove(path):
    return lambda data: (data / path).unlink()


def replace(path, other):
    """Put files of another set in place of this one's."""

    def damage(data):
        for source in (data.parent / other).glob(f"{path}*"):
            shutil.copy(source, data / path.rpartition("/")[0])

    return damage


def pipe(path):
    return lambda data: (data / path).unlink() or os.mkfifo(data / path)


def save(path, array):
    return lambda data: np.save(data / path, array, allow_pickle=True)


def npy_header(shape):
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


# fmt: off
CASES = [
    Case("no data", "text", ["dict.txt is not there", "python -m preprocess"],
         shutil.rmtree),
    Case("no images", "image", ["image is no directory", "python -m preprocess"],
         shutil.rmtree),
    Case("images for a text task", "text", ["is not there: is", "prepared data of a text task"],
         lambda data: write_images(shutil.rmtree(data) or data)),
    Case("texts for an image task", "image", ["neither valid.npy nor", "of an image task"],
         lambda data: write_text(shutil.rmtree(data) or data)),
    Case("the valid split is missing", "text", ["valid.idx is not there", "no split named valid"],
         remove("src-bin/valid.idx")),
    Case("the train split is missing", "text", ["train.idx is not there", "no split named train"],
         remove("src-bin/train.idx")),
    Case("tokens are missing", "text", ["train.bin is not there", "no split named train"],
         remove("src-bin/train.bin")),
    Case("images are missing", "image", ["neither train.npy nor train.src"],
         remove("input/train.npy")),
    Case("labels are missing", "image", ["label/train: there is neither train.npy nor"],
         remove("label/train.npy")),

    Case("tokens are cut short", "text", ["train.bin is 21 bytes long", "train.idx it must be"],
         cut("src-bin/train.bin", 21)),
    Case("no tokens", "text", ["train.bin is 0 bytes long", "damaged"],
         cut("src-bin/train.bin", 0)),
    Case("garbage tokens", "text", ["src-bin/train.bin: example 0 has symbol 4660", "17 symbols"],
         overwrite("src-bin/train.bin", 4, b"\x34\x12" * 20)),
    Case("the index is cut short", "text", ["train.idx is 60 bytes long", "12 examples"],
         cut("src-bin/train.idx", 60)),
    Case("the header is cut short", "text", ["train.idx is not an index", "cut short"],
         cut("src-bin/train.idx", 20)),
    Case("garbage index", "text", ["train.idx is not an index", "damaged"],
         write("src-bin/train.idx", b"\x07garbage" * 40)),
    Case("another version", "text", ["train.idx has a header that is unknown"],
         overwrite("src-bin/train.idx", 9, b"\x02")),
    Case("symbols that are no integers", "text", ["train.idx has a header that is unknown"],
         overwrite("src-bin/train.idx", 17, b"\x06")),
    Case("an index that claims too much", "text", ["header tells of 1,000,000,000,000,000 exa"],
         overwrite("src-bin/train.idx", 18, struct.pack("<Q", 10**15))),
    Case("garbage pointers", "text", ["train.idx is damaged", "do not follow each other"],
         overwrite("src-bin/train.idx", HEADER + 12 * 4 + 8, b"\xff" * 8)),
    Case("no examples", "text", ["train.idx: there is no example"],
         write("src-bin/train.idx", b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, 8, 0))),
    Case("a sequence of length 0", "text", ["train.idx: example 3 has length 0"],
         overwrite("src-bin/train.idx", HEADER + 3 * 4, bytes(4))),
    Case("garbage dictionary", "text", ["src-bin/dict.txt is not a dictionary", "one symbol"],
         write("src-bin/dict.txt", b"w0\nw1\n")),
    Case("dictionary that is no text", "text", ["label-bin/dict.txt is not a dictionary"],
         write("label-bin/dict.txt", b"\xff\xfe\x00 1\n")),
    Case("a smaller dictionary", "text", ["has symbol", "but the dictionary has 11 symbols"],
         cut("src-bin/dict.txt", 30)),

    Case("labels fewer than texts", "text", ["split train has 12 examples and 7 labels"],
         replace("label-bin/train", "less-text")),
    Case("labels more than texts", "text", ["split train has 7 examples and 12 labels"],
         replace("src-bin/train", "less-text")),
    Case("second documents fewer", "pairs", ["12 first documents and 7 second ones"],
         replace("src1-bin/train", "less-pairs")),
    Case("a label outside the classes", "text",
         ["example 1 of split train has class 5", "--sentence-class-num 2", "0 to 1"],
         overwrite("label-bin/train.bin", 4, b"\x09")),
    Case("a label that is no symbol", "text", ["example 1 of split train has class 251"],
         overwrite("label-bin/train.bin", 4, b"\xff")),
    Case("a label of two symbols", "text", ["label-bin/train.bin: label 0 has 3 symbols"],
         replace("label-bin/train", "long-labels")),
    Case("a pipe as dictionary", "text", ["src-bin/dict.txt is a pipe or a device"],
         pipe("src-bin/dict.txt")),
    Case("a pipe as labels", "src", ["label/train: there is neither"], pipe("label/train.label")),
    Case("validated images of another width", "image",
         ["images of split valid have 9 pixels, those of train 16"],
         save("input/valid.npy", np.zeros((5, 9), np.uint8))),
    Case("validated text images of another width", "src",
         ["images of split valid have 3 pixels, those of train 4"],
         write("input/valid.src", b"1 2 3\n" * 4)),
    Case("labels fewer than images", "image", ["label/train.npy holds 7 labels for 12 images"],
         save("label/train.npy", np.zeros(7, np.int64))),
    Case("labels more than images", "image", ["label/train.npy holds 13 labels for 12 images"],
         save("label/train.npy", np.zeros(13, np.int64))),
    Case("an image's label outside the classes", "image",
         ["example 2 of split train has class 2", "0 to 1"],
         save("label/train.npy", np.arange(12))),
    Case("a negative label", "image", ["label/train.npy: label -1 is negative"],
         save("label/train.npy", np.full(12, -1))),

    Case("images are cut short", "image", ["input/train.npy is not a complete NumPy array file"],
         cut("input/train.npy", 300)),
    Case("garbage images", "image", ["input/train.npy is not a complete NumPy array file"],
         write("input/train.npy", b"\x93garbage" * 40)),
    Case("an archive of images", "image", ["input/train.npy is not a complete NumPy array file"],
         write("input/train.npy", b"PK\x03\x04garbage")),
    Case("images of another type", "image", ["input/train.npy holds float64", "expected uint8"],
         save("input/train.npy", np.zeros((12, 16)))),
    Case("pickled images", "image", ["input/train.npy holds object", "expected numbers"],
         save("input/train.npy", np.array([{}] * 12, dtype=object))),
    Case("a header that claims too much", "image", ["input/train.npy is not a complete NumPy"],
         write("input/train.npy", npy_header((10**15, 16)))),
    Case("images without pixels", "image", ["input/train.npy holds no images"],
         write("input/train.npy", npy_header((10**15, 0)))),
    Case("a value over 255", "src", ["input/train.src, line 2: '256' is not a whole number"],
         write("input/train.src", b"1 2 3 4\n5 256 7 8\n")),
    Case("a word that is no number", "src", ["input/train.src, line 1: '2.5' is not a whole"],
         write("input/train.src", b"1 2.5 3 4\n")),
    Case("another width", "src", ["input/train.src, line 3: 3 pixels, the first line has 4"],
         write("input/train.src", b"1 2 3 4\n5 6 7 8\n1 2 3\n")),
    Case("an empty line", "src", ["input/train.src, line 1: the line is empty"],
         write("input/train.src", b"\n1 2 3 4\n")),
    Case("an empty file", "src", ["input/train.src holds no images"],
         write("input/train.src", b"")),
    Case("a label that is no number", "src", ["label/train.label, line 2: 'x' is not a label"],
         write("label/train.label", b"1\nx\n")),
    Case("a label of many digits", "src", ["label/train.label, line 1: '9999999999"],
         write("label/train.label", b"9" * 5000 + b"\n")),

    Case("--max-positions below an image", "image",
         ["an image has 16 pixels, more than --max-positions 15"], flags=["--max-positions", "15"]),
    Case("--chunk-size that does not divide", "image",
         ["--chunk-size 5 does not divide the 16 pixels"], flags=["--chunk-size", "5"]),
    Case("--attention unknown", "text",
         ["--attention is 'linnear'", "it must be one of ", "csp, "],
         flags=["--attention", "linnear"]),
    Case("--attention unknown to the transformer", "text",
         ["--attention is 'linnear'", "it must be one of ", "csp, "],
         flags=["--arch", "transformer_lra_imdb", "--attention", "linnear"]),
    Case("--attention of an LSTM", "text",
         ["--attention csp cannot be used in lstm; it has no attention: leave the flag out"],
         flags=["--arch", "lstm_lra_imdb", "--attention", "csp"]),
    Case("batch norm with text", "text",
         ["--norm-type batchnorm", "for text choose layernorm, scalenorm or rmsnorm"],
         flags=["--norm-type", "batchnorm"]),
    Case("--norm-type unknown", "text", ["--norm-type", "groupnorm", "layernorm"],
         flags=["--norm-type", "groupnorm"]),
    Case("--csp-group-size 0", "text", ["--csp-group-size is '0'", "at least 1, or full"],
         flags=["--attention", "csp", "--csp-group-size", "0"]),
    Case("classes fewer than the data's", "text",
         ["--sentence-class-num is 1", "has 2 classes"], flags=["--sentence-class-num", "1"]),
    Case("an architecture for images", "text",
         ["--input-type is image, but the task's input is text"],
         flags=["--arch", "mega_lra_pf32", "--norm-type", "layernorm"]),
    Case("a path that fairseq would replace", "text",
         ["${oc.env:HOME} has ${ in it", "rename it"],
         flags=["--tensorboard-logdir", "${oc.env:HOME}"]),
    Case("--pixel-normalization by 0", "image",
         ["--pixel-normalization is (0.5, 0.0)", "positive standard deviation"],
         flags=["--pixel-normalization", "0.5", "0"]),
    Case("--pixel-normalization by infinity", "image",
         ["--pixel-normalization is (0.5, inf)", "finite mean"],
         flags=["--pixel-normalization", "0.5", "inf"]),
    *(Case(f"{flag} {value}", "text", [f"{flag} is ", f"must be {allowed}"], flags=[flag, value])
      for flag, allowed, values in [
          ("--dropout", "at least 0 and below 1", ["1.5", "-1", "nan", "1.0", "inf"]),
          ("--act-dropout", "at least 0 and below 1", ["1.5", "nan"]),
          ("--attention-dropout", "at least 0 and below 1", ["-0.1", "1"]),
          ("--encoder-layers", "at least 1 and at most 1,000", ["0", "-1", "1001"]),
          ("--n-dim", "at least 1", ["0", "-3"]),
          ("--z-dim", "at least 1", ["0"]),
          ("--encoder-embed-dim", "at least 1", ["0", "-8"]),
          ("--encoder-hidden-dim", "at least 1", ["0"]),
          ("--encoder-ffn-embed-dim", "at least 0", ["-1"]),
          ("--encoder-attention-heads", "at least 1", ["0"]),
          ("--classifier-out-dim", "at least 1", ["0"]),
          ("--max-positions", "at least 1 and at most 1,000,000", ["0", "-1", "100000000000"]),
          ("--sentence-class-num", "at least 1 and at most 100,000", ["100000000"]),
          ("--lr", "a finite number above 0", ["0", "-0.1", "1e-400", "0.1,0", "1e999"]),
          ("--clip-norm", "a finite number at least 0", ["nan", "-1"]),
          ("--weight-decay", "a finite number at least 0", ["-0.1"]),
          ("--adam-betas", "at least 0 and below 1", ["(0.9, 1.0)"]),
          ("--adam-eps", "a finite number above 0", ["0"]),
          ("--label-smoothing", "at least 0 and below 1", ["1"]),
          ("--update-freq", "at least 1", ["0", "1,0"]),
          ("--batch-size", "at least 1", ["-3", "0"]),
          ("--num-workers", "at least 0", ["-1"]),
          ("--seed", "at least 0 and at most 4,294,967,295", ["-1", "4294967296"]),
          ("--warmup-updates", "at least 0", ["-1"]),
          ("--max-update", "at least 0", ["-1"]),
          ("--patience", "at least -1", ["-2"]),
          ("--log-interval", "at least 1", ["0"]),
          ("--save-interval", "at least 1", ["0"]),
          ("--validate-interval", "at least 1", ["0"]),
      ] for value in values),
    Case("--power of another schedule", "text", ["--power is nan, but must be a finite number"],
         flags=["--lr-scheduler", "polynomial_decay", "--power", "nan"]),
    Case("--lr-scheduler inverse_sqrt without warm-up", "text",
         ["--warmup-updates is 0", "--lr-scheduler inverse_sqrt divides by it", "at least 1"],
         flags=["--lr-scheduler", "inverse_sqrt", "--warmup-updates", "0"],
         without=["--total-num-update"]),
    Case("--lr-scheduler triangular without a period", "text",
         ["--lr-period-updates is 1", "--lr-scheduler triangular divides by it", "at least 2"],
         flags=["--lr-scheduler", "triangular", "--max-lr", "1", "--lr-period-updates", "1"],
         without=["--total-num-update", "--warmup-updates"]),
    Case("--max-lr below --lr", "text", ["the flags do not go together: max_lr must be more"],
         flags=["--lr-scheduler", "triangular", "--max-lr", "1e-9"],
         without=["--total-num-update", "--warmup-updates"]),
    Case("--skip-remainder-batch of a single batch", "text",
         ["--skip-remainder-batch leaves 0 batches of an epoch", "lower --batch-size"],
         flags=["--skip-remainder-batch", "--batch-size", "1000"]),
    Case("--encoder-ffn-embed-dim 0 of a transformer", "text", ["which only MEGA takes"],
         flags=["--arch", "transformer_lra_imdb", "--encoder-ffn-embed-dim", "0"]),
    *(Case(f"--criterion {name}", "text", [f"--criterion is {name}", "lra_cross_entropy"],
           flags=["--criterion", name])
      for name in ["cross_entropy", "label_smoothed_cross_entropy", "sentence_prediction"]),
    Case("no --criterion", "text", ["--criterion is cross_entropy", "--criterion lra_cross_ent"],
         without=["--criterion"]),
    Case("no --arch", "text", ["--arch is missing", "such as mega_lra_listop"],
         without=["--arch"]),
    Case("no --batch-size", "text", ["--batch-size is missing"], without=["--batch-size"]),
    Case("--max-tokens below the longest example", "text",
         ["--max-tokens is 20, but the longest example", "has 30 positions"],
         flags=["--max-tokens", "20"]),
    Case("--best-checkpoint-metric without its direction", "text",
         ["accuracy is best where it is highest: add --maximize-best-checkpoint-metric"],
         without=["--maximize-best-checkpoint-metric"]),
    Case("--best-checkpoint-metric in the wrong direction", "text",
         ["loss is best where it is lowest: leave out"],
         flags=["--best-checkpoint-metric", "loss"]),
    Case("--best-checkpoint-metric that is not logged", "text",
         ["--best-checkpoint-metric is f1, which is not logged: give one of loss, accuracy"],
         flags=["--best-checkpoint-metric", "f1"]),
    Case("--fp16 on a CPU", "text", ["--fp16 needs a GPU"], flags=["--fp16"]),
    Case("--fp16 and --bf16", "text", ["--fp16 and --bf16 exclude each other"],
         flags=["--fp16", "--bf16"]),
    Case("a model larger than the memory", "text", ["the model would take", "GiB, more memory"],
         flags=["--encoder-embed-dim", "65536", "--encoder-hidden-dim", "65536",
                "--encoder-ffn-embed-dim", "65536", "--encoder-layers", "9"]),
    Case("a number that is none", "text", ["'1e'", "cannot be read as a number"],
         flags=["--lr", "1e"]),
    Case("a name that is not UTF-8", "text", ["--tensorboard-logdir", "which is not UTF-8"],
         flags=["--tensorboard-logdir", "a\udcff"]),
    Case("a --tensorboard-logdir that cannot be made", "text",
         ["--tensorboard-logdir /proc/here/runs cannot be made or written", "name another place"],
         flags=["--tensorboard-logdir", "/proc/here/runs"]),
    Case("a --restore-file that is not there", "text", ["--restore-file missing.pt is not there"],
         flags=["--restore-file", "missing.pt"]),
    Case("a --finetune-from-model that is a directory", "text",
         ["--finetune-from-model /tmp is no file: name a checkpoint"],
         flags=["--finetune-from-model", "/tmp"]),
    Case("a --restore-file that is a directory", "text", ["--restore-file /tmp is no file"],
         flags=["--restore-file", "/tmp"]),
    Case("a --finetune-from-model that is not there", "text",
         ["--finetune-from-model missing.pt is not there"],
         flags=["--finetune-from-model", "missing.pt"]),
]
# fmt: on


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Undamaged sets of each kind, and smaller ones."""
    root = tmp_path_factory.mktemp("whole")
    less = {"train": 7}
    write_text(root / "text")
    write_text(root / "less-text", splits=less)
    # as if each label were a text of two symbols and the end of the sentence
    write_text(root / "texts", splits={"train": 12}, longest=3)
    (root / "long-labels").mkdir()
    shutil.copytree(root / "texts" / "src-bin", root / "long-labels" / "label-bin")
    write_text(root / "pairs", documents=2)
    write_text(root / "less-pairs", documents=2, splits=less)
    write_images(root / "image")
    for kind in ("input", "label"):
        (root / "src" / kind).mkdir(parents=True)
    for split in ("train", "valid"):
        (root / "src" / "input" / f"{split}.src").write_text("1 2 3 4\n" * 4)
        (root / "src" / "label" / f"{split}.label").write_text("0\n1\n0\n1\n")
    return root


@pytest.fixture
def run(monkeypatch):
    """Run one of fairseq's commands in this process, up to the first update."""
    begun = []

    def run(command, *words):
        name = command.__name__.rpartition(".")[2]
        monkeypatch.setattr(sys, "argv", [f"fairseq-{name}", *map(str, words)])
        command.cli_main()

    class Begun(BaseException):
        """Training was about to start."""

    def begin(*arguments):
        begun.append(arguments)
        raise Begun

    monkeypatch.setattr(Trainer, "train_step", begin)
    run.begun, run.Begun = begun, Begun
    return run


def refused(words, run, command, *arguments):
    """The command exits with status 1 and one line without a traceback, which has these words."""
    with pytest.raises(SystemExit) as caught:
        run(command, *arguments)
    message = caught.value.code
    assert isinstance(message, str) and "\n" not in message, message
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("kind", FLAGS)
def test_training_starts_where_nothing_is_wrong(kind, whole, run, tmp_path):
    with pytest.raises(run.Begun):
        run(fairseq_train, whole / kind, *TRAINING, *TINY, *FLAGS[kind], "--save-dir", tmp_path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_one_sentence_before_training_starts(case, whole, run, tmp_path):
    for source in whole.iterdir():
        shutil.copytree(source, tmp_path / source.name)
    data, save = tmp_path / case.kind, tmp_path / "save"
    case.damage(data)
    flags = [*TRAINING, *TINY, *FLAGS[case.kind]]
    for flag in case.without:
        begin = flags.index(flag)
        takes_none = begin + 1 == len(flags) or flags[begin + 1].startswith("--")
        del flags[begin : begin + (1 if takes_none else 2)]
    refused(case.words, run, fairseq_train, data, *flags, *case.flags, "--save-dir", save)
    assert not run.begun
    assert not save.exists() or not list(save.iterdir())


@pytest.mark.parametrize(
    ("kind", "name"), [("text", "src-bin/train.bin"), ("image", "input/train.npy")]
)
@pytest.mark.parametrize("workers", ["0", "1"])
def test_data_that_is_cut_short_in_training_is_told(
    kind, name, workers, whole, tmp_path, monkeypatch
):
    """With a memory map the process, or its loader's, would end by SIGBUS."""
    shutil.copytree(whole / kind, tmp_path / kind)

    def empty(task, *arguments):
        os.truncate(tmp_path / kind / name, 0)

    def run(command, *words):
        monkeypatch.setattr(sys, "argv", ["fairseq-train", *map(str, words)])
        command.cli_main()

    monkeypatch.setattr(LRATask, "begin_epoch", empty)
    refused([f"{name} became shorter while it was in use"], run, fairseq_train, tmp_path / kind,
            *TRAINING, *TINY, *FLAGS[kind], "--num-workers", workers,
            "--save-dir", tmp_path / "save")  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(whole):
    """The last checkpoint of a run of one update on the text set."""
    save = whole / "checkpoints"
    train(whole / "text", save, *TINY, *FLAGS["text"], updates=1)
    return save / "checkpoint_last.pt"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--encoder-embed-dim", "10"], ["--encoder-embed-dim is 10, but", "trained with 8"]),
        (["--encoder-layers", "3"], ["--encoder-layers is 3, but", "trained with 2"]),
        (["--arch", "transformer_lra_imdb"], ["--arch is transformer_lra_imdb", "mega_lra_imdb"]),
        (["--attention", "csp"], ["--attention is csp", "trained with none", "--finetune-from"]),
        (["--rel-pos-bias", "rotary"], ["--rel-pos-bias is rotary", "with simple", "--save-dir"]),
        (["--activation-fn", "relu"], ["--activation-fn is relu, but", "trained with silu"]),
        (["--sen-rep-type", "cls"], ["--sen-rep-type is cls, but", "trained with mp"]),
        (["--max-positions", "99"], ["--max-positions is 99, but", "trained with 4002"]),
    ],
    ids=lambda value: "-".join(value) if value[0].startswith("--") else None,
)
def test_training_goes_on_from_no_other_model(flags, words, checkpoint, whole, run, tmp_path):
    shutil.copytree(checkpoint.parent, tmp_path / "save")
    before = {path: path.read_bytes() for path in (tmp_path / "save").iterdir()}
    refused(words, run, fairseq_train, whole / "text", *TRAINING, *TINY, *FLAGS["text"], *flags,
            "--save-dir", tmp_path / "save")  # fmt: skip
    assert {path: path.read_bytes() for path in (tmp_path / "save").iterdir()} == before


@pytest.mark.parametrize("use", ["validate", "resume", "finetune"])
@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("src", lambda text: text + "w99 1\n", ["(18)", "(17)", "'w99' here and '<CLS>' there"]),
        (
            "src",
            lambda text: text.replace("w3", "other"),
            ["another dictionary of symbols", "'w3'", "'other'"],
        ),
        (
            "label",
            lambda text: text.replace("0 ", "none ", 1),
            ["another dictionary of classes", "number 4 is 'none' here and '0' there"],
        ),
    ],
    ids=["longer", "other symbols", "other classes"],
)
def test_a_checkpoint_needs_its_dictionaries(
    use, part, change, words, checkpoint, whole, run, tmp_path
):
    data = shutil.copytree(whole / "text", tmp_path / "text")
    path = data / f"{part}-bin" / "dict.txt"
    path.write_text(change(path.read_text()))
    if use == "validate":
        refused(words, run, fairseq_validate, data, *VALIDATION, "--path", checkpoint)
        return
    save, flags = tmp_path / "save", ["--finetune-from-model", checkpoint]
    if use == "resume":
        shutil.copytree(checkpoint.parent, save)
        flags = []
    refused(words, run, fairseq_train, data, *TRAINING, *TINY, *FLAGS["text"], *flags,
            "--save-dir", save)  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--path", "missing.pt"], "--path must name a checkpoint that is there, not missing.pt"),
        ([], "--path must name a checkpoint that is there, not None"),
        (["--path", "${oc.env:HOME}"], "${oc.env:HOME} has ${ in it, which fairseq would replace"),
    ],
    ids=["not there", "not given", "replaced"],
)
def test_validation_needs_a_checkpoint(flags, message, whole, run):
    refused([message], run, fairseq_validate, whole / "text", *VALIDATION, *flags)


def test_longer_texts_are_cut_and_counted(whole, run, tmp_path):
    """As published: below the data's lengths --max-positions cuts; the log tells how many."""
    lengths = np.fromfile(whole / "text" / "src-bin" / "train.idx", "<i4", 12, offset=HEADER)
    longer = (lengths > 20).sum()
    assert 0 < longer < 12
    with logged("fairseq_csp.tasks.lra_text") as lines, pytest.raises(run.Begun):
        run(fairseq_train, whole / "text", *TRAINING, *TINY, *FLAGS["text"],
            "--sen-rep-type", "mp", "--max-positions", "20", "--save-dir", tmp_path)  # fmt: skip
    assert [line for line in lines if line.startswith(
        f"{longer} of 12 examples in src-bin/train are longer than --max-positions 20"
    )]  # fmt: skip


def test_paths_that_fairseq_takes_apart(whole, run, tmp_path):
    """A colon in the data's path, and a log in a directory that is not there yet."""
    data = shutil.copytree(whole / "text", tmp_path / "a:b" / "text")
    log = tmp_path / "not" / "there" / "train.log"
    with pytest.raises(run.Begun):
        run(fairseq_train, data, *TRAINING, *TINY, *FLAGS["text"], "--log-file", log,
            "--save-dir", tmp_path / "save")  # fmt: skip
    assert log.exists()


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_has_a_checkpoints_name_must_be_a_file(kind, whole, run, tmp_path):
    last = tmp_path / "checkpoint_last.pt"
    if kind == "pipe":
        os.mkfifo(last)
    else:
        last.mkdir()
    refused(["checkpoint_last.pt is no file: move it away"], run, fairseq_train, whole / "text",
            *TRAINING, *TINY, *FLAGS["text"], "--save-dir", tmp_path)  # fmt: skip
    assert last.exists()


@pytest.mark.parametrize(
    "registry", [OPTIMIZER_DATACLASS_REGISTRY, LR_SCHEDULER_DATACLASS_REGISTRY]
)
def test_the_numbers_of_every_optimizer_and_schedule_are_bounded(registry):
    """By the table, which allows what fairseq has by default."""
    for name, cls in registry.items():
        numbers = {
            entry.name: entry.default
            for entry in dataclasses.fields(cls)
            if re.search(r"\b(int|float)\b", str(entry.type))
        }
        assert numbers.keys() <= NUMBERS.keys(), name
        check_values(
            {key: value for key, value in numbers.items() if isinstance(value, int | float)}
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "--batch-size is 0, but must be at least 1"),
        (["--num-workers", "-1"], "--num-workers is -1, but must be at least 0"),
        (["--fp16"], "--fp16 needs a GPU"),
        (["--max-tokens", "20"], "--max-tokens is 20, but the longest example"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_flags_of_a_validation_are_checked(flags, message, checkpoint, whole, run):
    refused([message], run, fairseq_validate, whole / "text", *VALIDATION, "--path", checkpoint,
            *flags)  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cpu_goes_without_saying(whole, run, tmp_path):
    words = [word for word in TRAINING if word != "--cpu"]
    with pytest.raises(run.Begun):
        run(fairseq_train, whole / "text", *words, *TINY, *FLAGS["text"], "--save-dir", tmp_path)


def test_convert_leaves_a_bad_set_as_it_was(whole, tmp_path, capsys):
    data = shutil.copytree(whole / "src", tmp_path / "src")
    for kind, suffix in (("input", "src"), ("label", "label")):
        shutil.copy(data / kind / f"valid.{suffix}", data / kind / f"test.{suffix}")
    (data / "input" / "test.src").write_text("1 2 3 4\n5 6 7 256\n")
    before = sorted(path for path in data.rglob("*"))
    assert preprocess(["convert", str(data)]) == 1
    assert "test.src, line 2: '256' is not a whole number" in capsys.readouterr().err
    assert sorted(path for path in data.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (lambda data, save: training_command(data, save), "train.idx: there is no example"),
        (
            lambda data, save: ["bash", ROOT / "train_lra.sh", "model_name=mega",
                                "dataset_name=listops", "preset=demo", f"data_dir={data}",
                                f"save_dir={save}"],
            "train.idx: there is no example",
        ),
        (
            lambda data, save: [sys.executable, "-m", "preprocess", "show", data,
                                "--split", "train"],
            "train.idx: there is no example",
        ),
    ],
    ids=["fairseq-train", "train_lra.sh", "preprocess"],
)  # fmt: skip
def test_the_commands_end_with_one_line(command, message, whole, tmp_path):
    data = shutil.copytree(whole / "text", tmp_path / "text")
    next(case for case in CASES if case.name == "no examples").damage(data)
    answer = call(*command(data, tmp_path / "save"))
    assert answer.returncode == 1
    assert "Traceback" not in answer.stdout + answer.stderr
    assert message in answer.stderr.splitlines()[-1]
    assert not list((tmp_path / "save").rglob("*.pt"))
