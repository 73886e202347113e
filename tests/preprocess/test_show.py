import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fairseq_csp.data.pixels import load_labels, load_pixels
from preprocess.__main__ import main
from tests.preprocess.test_aan import PAIRS
from tests.preprocess.test_aan import write as write_aan


def show(capsys, *arguments):
    capsys.readouterr()
    status = main(["show", *map(str, arguments)])
    out, err = capsys.readouterr()
    return out if status == 0 else err


def test_bytes_come_back_as_text(prepare, tmp_path, capsys):
    write_aan(tmp_path / "raw")
    out = prepare("aan", "--raw", tmp_path / "raw", "--limit", 9)
    shown = show(capsys, out, "--split", "train", "--index", 1)
    _, text, other = PAIRS["train"][1]
    assert "label: 0\n" in shown
    assert f"src: {len(text)} symbols and EOS\n{text.decode()}\n" in shown
    assert f"src1: 3 symbols and EOS\n{other.decode(errors='replace')}\n" in shown
    assert "\N{REPLACEMENT CHARACTER}" in show(capsys, out, "--split", "test", "--index", 1)


def test_sentencepiece_comes_back_as_text(prepare, tmp_path, capsys):
    write_aan(tmp_path / "raw")
    options = ("--tokenizer", "sentencepiece", "--vocab-size", 280)
    out = prepare("aan", "--raw", tmp_path / "raw", "--limit", 9, *options)
    assert 'it\'s "quoted" and tabbed' in show(capsys, out, "--split", "train")


def test_expressions_come_back(prepare, capsys):
    out = prepare("listops", "--demo", "--limit", 5)
    shown = show(capsys, out, "--index", 4)
    assert shown.splitlines()[3].startswith("[")
    assert "--index 5" in show(capsys, out, "--index", 5)
    assert "--index -1" in show(capsys, out, "--index", -1)


def test_images_come_back(prepare, tmp_path, capsys):
    out = prepare("cifar10", "--demo", "--limit", 5)
    shown = show(capsys, out, "--split", "valid", "--index", 2, "--png", tmp_path / "x.png")
    assert f"label: {load_labels(out, 'valid')[2]}\n" in shown and "32 x 32" in shown
    with Image.open(tmp_path / "x.png") as image:
        np.testing.assert_array_equal(np.asarray(image).ravel(), load_pixels(out, "valid")[2])


@pytest.mark.parametrize("directory", [".", "nothing"])
def test_other_directories_are_told(tmp_path, capsys, directory):
    assert "is not a prepared set" in show(capsys, tmp_path / directory)


def test_a_terminal_that_knows_few_characters_and_obeys_others(prepare, tmp_path):
    pairs = {"train": [("1.0", "naïve – \x1b[2J\x9b\r\n\tend".encode(), b"x")]}
    write_aan(tmp_path / "raw", pairs | {name: [("1.0", b"x", b"x")] for name in ("eval", "test")})
    out = prepare("aan", "--raw", tmp_path / "raw", "--limit", 9)
    command = [sys.executable, "-m", "preprocess", "show", out, "--split", "train"]
    for encoding, expected in (
        ("utf-8", "naïve – \\x1b[2J\\x9b\\x0d\n\tend\n"),
        ("ascii", "na\\xefve \\u2013 \\x1b[2J\\x9b\\x0d\n\tend\n"),
    ):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        answer = subprocess.run(command, capture_output=True, env=environment, check=True)
        assert expected in answer.stdout.decode(encoding)
