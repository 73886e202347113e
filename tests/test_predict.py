"""``python -m fairseq_csp.predict``: the inputs are encoded as the training data is.

Each kind of input is prepared and trained on by the real code; what is predicted of the texts and
images that the test split was made from is compared with the model in evaluation on that split, and
with the accuracy of fairseq-validate.
"""

import json
import logging
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fairseq_csp import checkpoints, predict, predictor
from fairseq_csp.analysis import trained
from fairseq_csp.errors import UserError
from fairseq_csp.models.lra import LRAModel
from fairseq_csp.models.vit_classifier import ViTClassifier
from preprocess import aan, imdb
from preprocess.__main__ import main as preprocess
from tests.helpers.commands import ENVIRONMENT, ROOT
from tests.helpers.images import write_files
from tests.helpers.processed import token_lines
from tests.helpers.running import TINY, train, validate

VIT = [
    *("--criterion", "image_cross_entropy", "--encoder-layers", "1", "--encoder-embed-dim", "8"),
    *("--encoder-ffn-embed-dim", "8", "--encoder-attention-heads", "2", "--head-dim", "4"),
]
EXAMPLES = 12


def prepare(directory, name, *options):
    arguments = [name, "--demo", "--limit", str(EXAMPLES), "--out", str(directory), *options]
    assert preprocess([*arguments, "--workers", "1"]) == 0


def standin(name):
    if name == "imdb-4000":
        return [text for _, text in imdb._standin(42)["test"]][:EXAMPLES]
    pairs = [b"\t".join(texts) for split, _, *texts in aan._standin(42) if split == "test"]
    return pairs[:EXAMPLES]


def lra(task, arch, *words):
    return ["--task", task, "--arch", arch, "--attention", "csp", *TINY, *words]


def listops(directory):
    prepare(directory, "listops")
    lines = token_lines(directory / "src-bin", "test")
    # as the release writes them, with parentheses
    texts = [f"( {' '.join(line[:-1])} )".encode() for line in lines]
    return lra("lra-text", "mega_lra_listop", "--sen-rep-type", "mp"), texts


def reviews(directory):
    # some are longer than the cut
    prepare(directory, "imdb-4000", "--cut", "200")
    return lra("lra-text", "mega_lra_imdb", "--sen-rep-type", "cls"), standin("imdb-4000")


def pieces(directory):
    prepare(directory, "imdb-4000", "--tokenizer", "sentencepiece", "--vocab-size", "300")
    return lra("lra-text", "transformer_lra_imdb"), standin("imdb-4000")


def pairs(directory):
    prepare(directory, "aan")
    words = lra("lra-text", "mega_lra_aan", "--sen-rep-type", "mp", "--max-positions", "150")
    return words, standin("aan")


def save(directory, images):
    directory.mkdir()
    paths = [directory / f"{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return [str(path).encode() for path in paths]


def grey(directory):
    prepare(directory, "cifar10")
    images = np.load(directory / "input" / "test.npy").reshape(-1, 32, 32)
    words = lra("lra-image", "mega_lra_cifar10", "--sen-rep-type", "mp")
    return [*words, "--pixel-normalization", "0.48", "0.24"], save(
        directory.with_name("png"), images
    )


def colours(directory):
    prepare(directory, "cifar10-rgb")
    images = np.load(directory / "input" / "test.npy")
    words = ["--task", "image-classification", "--arch", "vit_cifar10", "--attention", "csp", *VIT]
    return words, save(directory.with_name("png"), images)


def photographs(directory):
    write_files(directory, size=(40, 52))
    names = np.load(directory / "input" / "test.npy")
    words = ["--task", "image-classification", "--arch", "vit_cifar10", "--crop-size", "16", *VIT]
    return words, [str(directory / "files" / name.decode()).encode() for name in names]


KINDS = (listops, reviews, pieces, pairs, grey, colours, photographs)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def kind(request, tmp_path_factory):
    """A trained model of each kind: checkpoint, data, and the inputs of the test split."""
    directory = tmp_path_factory.mktemp(request.param.__name__)
    words, lines = request.param(directory / "data")
    train(directory / "data", directory / "run", *words)
    # the best of all trainings in this process is not one of each
    return directory / "run" / "checkpoint_last.pt", directory / "data", lines


def printed(capsys, *arguments):
    capsys.readouterr()
    # fairseq's commands, which were called in this process, have their logs go to stdout
    logging.disable()
    try:
        assert predict.main([str(argument) for argument in arguments]) == 0
    finally:
        logging.disable(logging.NOTSET)
    return capsys.readouterr().out.splitlines()


def test_predictions_are_those_of_the_evaluation(kind, tmp_path, capsys):
    checkpoint, data, lines = kind
    model, task = trained.load(checkpoint, data)
    task.load_dataset("test")
    dataset = task.dataset("test")
    order = np.argsort([int(dataset[k]["id"]) for k in dataset.ordered_indices()])
    batch = dataset.collater([dataset[k] for k in dataset.ordered_indices()])
    with torch.no_grad():
        expected = model(**batch["net_input"]).float().softmax(1)[order]
    accuracy = validate(checkpoint, "test", data)["accuracy"]
    names = [predictor.class_name(task, int(number)) for number in batch["target"][order]]

    file = tmp_path / "lines"
    file.write_bytes(b"\n".join(lines) + b"\n")
    flags = ["--data", data] if data.parent.name.startswith("pieces") else []
    if not flags and not (data / "files").exists():
        # the checkpoint tells enough
        data.rename(data.with_name("away"))
    try:
        found = [
            json.loads(line)
            for line in printed(capsys, "--path", checkpoint, *flags, "--json", file)
        ]
        plain = printed(capsys, "--path", checkpoint, *flags, "--batch-size", "5", file)
    finally:
        if not data.exists():
            data.with_name("away").rename(data)

    probabilities = torch.tensor([list(one["probabilities"].values()) for one in found])
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-5)
    assert [one["line"] for one in found] == list(range(1, len(lines) + 1))
    for one, line in zip(found, plain, strict=True):
        name, probability = line.split("\t")
        assert name == one["class"] == max(one["probabilities"], key=one["probabilities"].get)
        assert float(probability) == pytest.approx(one["probability"], abs=1e-4)
    right = [one["class"] == name for one, name in zip(found, names, strict=True)]
    assert 100 * sum(right) / len(right) == pytest.approx(accuracy, abs=0.01)


def test_encoded_inputs_are_those_of_the_data(kind):
    checkpoint, data, lines = kind
    loaded = predictor.load(checkpoint, data)
    loaded.task.load_dataset("test")
    dataset = loaded.task.dataset("test")
    rows = sorted((dataset[k] for k in range(len(dataset))), key=lambda row: int(row["id"]))
    expected = dataset.collater(rows)["net_input"]
    found = loaded.inputs.batch([loaded.encode(line) for line in lines])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            torch.as_tensor(found[name]), torch.as_tensor(value), rtol=0, atol=0
        )


def test_from_pretrained(kind):
    checkpoint, data, lines = kind
    classes = [LRAModel, ViTClassifier]
    if data.parent.name.startswith(("colours", "photographs")):
        classes.reverse()
    loaded = classes[0].from_pretrained(checkpoint.parent, checkpoint.name, data_name_or_path=data)
    assert isinstance(loaded.model, classes[0]) and not loaded.model.training
    alone = classes[0].from_pretrained(str(checkpoint), data_name_or_path=data)
    (one,), (same,) = loaded.predict(lines[:1]), alone.predict(lines[:1])
    assert one == same
    assert sum(one.probabilities.values()) == pytest.approx(1)
    with pytest.raises(UserError, match=f"no {classes[1].__name__}"):
        classes[1].from_pretrained(checkpoint, data_name_or_path=data)


BAD = {
    "listops": [
        (b"[MAX 1 2", "it is no ListOps expression: [MAX is not closed"),
        (b"hello", "it is no ListOps expression: 'hello' is no symbol"),
    ],
    "reviews": [(b"   ", "it is empty")],
    "pairs": [
        (b"one text", "it has 1 texts, expected two with a tab between them"),
        (b"a\tb\tc", "it has 3 texts, expected two"),
        (b"a\t", "it is empty"),
    ],
    "grey": [
        (b"nowhere.png", "nowhere.png cannot be read (No such file or directory)"),
        (b"", "it is empty"),
        (b"README.md", "README.md is not a readable PNG or JPEG image"),
    ],
    "colours": [(b"docs", "docs is a directory, where a file is expected")],
    "photographs": [(b"README.md", "README.md is not a whole PNG or JPEG image")],
}


def test_a_bad_line_is_told_with_file_and_line(kind, tmp_path, capsys, monkeypatch):
    checkpoint, data, lines = kind
    monkeypatch.chdir(ROOT)
    for bad, message in BAD.get(data.parent.name.rstrip("0123456789"), []):
        file = tmp_path / "lines"
        file.write_bytes(lines[0] + b"\n" + bad + b"\n" + lines[1] + b"\n")
        capsys.readouterr()
        with pytest.raises(UserError) as caught:
            predict.main(["--path", str(checkpoint), str(file)])
        assert str(caught.value).startswith(f"{file}, line 2: {message}")
        # what stands before it is predicted, what follows is not
        assert len(capsys.readouterr().out.splitlines()) == 1


def test_an_image_of_another_size(tmp_path):
    words, _ = grey(tmp_path / "data")
    train(tmp_path / "data", tmp_path / "run", *words, updates=1)
    loaded = predictor.load(tmp_path / "run" / "checkpoint_last.pt")
    Image.new("L", (31, 32)).save(tmp_path / "small.png")
    with pytest.raises(UserError, match="small.png has 31 x 32 pixels, expected 32 x 32"):
        loaded.predict([tmp_path / "small.png"])


def test_the_command_reads_standard_input(trained_run, tiny_listops):
    command = [sys.executable, "-m", "fairseq_csp.predict", "--path"]
    command.append(trained_run / "checkpoint_best.pt")
    answer = subprocess.run(
        command, input="[MIN 4 [MAX 2 7 ] ]\n3\nx\n", capture_output=True, text=True, cwd=ROOT,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert answer.returncode == 1
    assert re.fullmatch(r"(\d\t[01]\.\d{4}\n){2}", answer.stdout)
    message = "standard input, line 3: it is no ListOps expression: 'x' is no symbol\n"
    assert answer.stderr == message


def test_a_checkpoint_that_keeps_nothing_of_its_data(trained_run, tiny_listops, tmp_path):
    state = torch.load(trained_run / "checkpoint_best.pt", weights_only=False)
    for key in ("documents", "tokenizer", "cut"):
        del state["task_state"][key]
    torch.save(state, tmp_path / "earlier.pt")
    # the data are where it was trained from
    assert predictor.load(tmp_path / "earlier.pt").predict(["3"])
    state["cfg"]["task"]["data"] = "nowhere"
    torch.save(state, tmp_path / "earlier.pt")
    with pytest.raises(UserError, match=r"does not tell its documents.*\(--data\)"):
        predictor.load(tmp_path / "earlier.pt")
    assert predictor.load(tmp_path / "earlier.pt", tiny_listops).predict(["3"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("documents", 3), ("cut", -1), ("cut", 1 << 40), ("tokenizer", "x"), ("symbols", [1])],
)
def test_what_a_checkpoint_tells_of_its_data_is_checked(key, value, trained_run, tmp_path):
    state = torch.load(trained_run / "checkpoint_best.pt", weights_only=False)
    state["task_state"][key] = value
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=key):
        checkpoints.load(tmp_path / "odd.pt")


def test_symbols_that_are_no_dictionary(trained_run, tmp_path):
    state = torch.load(trained_run / "checkpoint_best.pt", weights_only=False)
    state["cfg"]["task"]["data"] = "nowhere"
    state["task_state"]["symbols"][5] = state["task_state"]["symbols"][6]
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(UserError, match="symbols or classes are not those of a dictionary"):
        predictor.load(tmp_path / "odd.pt")
