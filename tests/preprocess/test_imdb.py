import json
import tarfile
from dataclasses import replace

import pytest
import sentencepiece
from fairseq.data import Dictionary

from preprocess.imdb import DATA_SET
from tests.helpers.processed import files, token_lines

# the traps: not ASCII, an empty review, markup, brackets, CRLF, not UTF-8, longer than the cut
REVIEWS = {
    "train/neg/0_1.txt": b"bad <br />film",
    "train/neg/1_2.txt": b"",
    "train/neg/10_3.txt": b"[MIN 1 2]\r\n\ttabs",
    "train/pos/0_9.txt": "très bon – 10/10".encode(),
    "train/pos/1_8.txt": b"\xff\xfe\x00",
    "train/pos/10_7.txt": b"abcde" * 1000,
    "test/neg/0_2.txt": b"zzz",
    "test/pos/0_10.txt": b"good",
}


SMALL = ("--limit", 100)


def expected(name, cut=4000):
    return [str(value) for value in REVIEWS[name][:cut]] + ["</s>"]


@pytest.fixture
def raw(tmp_path):
    directory = tmp_path / "aclImdb"
    for name, text in REVIEWS.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(text)
    # also in the release, and not to be read
    (directory / "train" / "unsup").mkdir()
    (directory / "train" / "unsup" / "0_0.txt").write_text("unsupervised")
    (directory / "train" / "urls_pos.txt").write_text("http://")
    return directory


ORDER = ["train/neg/0_1.txt", "train/pos/0_9.txt", "train/neg/1_2.txt",
         "train/pos/1_8.txt", "train/neg/10_3.txt", "train/pos/10_7.txt"]  # fmt: skip


def test_every_byte_is_a_symbol_and_valid_is_test(raw, prepare):
    out = prepare("imdb-4000", "--raw", raw, "--limit", 100)
    assert token_lines(out / "src-bin", "train") == [expected(name) for name in ORDER]
    labels = [label for label, _ in token_lines(out / "label-bin", "train")]
    assert labels == ["0", "1"] * 3
    unseen = [["<unk>"] * 3 + ["</s>"], ["<unk>", *expected("test/pos/0_10.txt")[1:]]]
    for split in ("valid", "test"):
        assert token_lines(out / "src-bin", split) == unseen  # train has neither z nor g
        assert token_lines(out / "label-bin", split) == [["0", "</s>"], ["1", "</s>"]]
    distinct = {byte for name in ORDER for byte in REVIEWS[name][:4000]}
    dictionary = Dictionary.load(str(out / "src-bin" / "dict.txt"))
    assert set(dictionary.symbols[4:]) - {str(byte) for byte in distinct} == {
        f"madeupword{i:04}" for i in range(len(dictionary) - 4 - len(distinct))
    }
    assert len(dictionary) % 8 == 0
    assert dictionary.count[4:] == sorted(dictionary.count[4:], reverse=True)


def test_archive_and_its_place_give_the_same_as_the_directory(raw, prepare, tmp_path):
    archive = tmp_path / "downloaded" / "aclImdb_v1.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(raw.rglob("*"), reverse=True):
            tar.add(path, path.relative_to(tmp_path), recursive=False)
    one, two, three = (
        files(prepare("imdb-4000", "--raw", path, "--limit", 100, "--overwrite"))
        for path in (raw, archive, archive.parent)
    )
    assert two == three
    for content in (one, two):
        del content["summary.json"]  # names the source
    assert one == two


def test_valid_is_said_to_be_test(raw, prepare, capsys):
    prepare("imdb-4000", "--raw", raw, "--limit", 100)
    assert "valid is a copy of test" in capsys.readouterr().err


def test_holdout_takes_valid_from_train(raw, prepare, tmp_path, fail):
    out = prepare("imdb-4000", "--raw", raw, "--limit", 100, "--holdout", 0.34)
    train, valid = (token_lines(out / "src-bin", split) for split in ("train", "valid"))
    assert len(train) == 4 and len(valid) == 2
    assert len(token_lines(out / "src-bin", "test")) == 2
    other = prepare("imdb-4000", "--raw", raw, "--limit", 9, "--holdout", 0.34, "--seed", 1,
                    out=tmp_path / "b")  # fmt: skip
    assert token_lines(other / "src-bin", "valid") != valid
    message = fail("imdb-4000", "--raw", raw, "--holdout", 0.1)
    assert "train has 5 examples, expected 22,500" in message


def test_limit_keeps_both_classes(raw, prepare):
    out = prepare("imdb-4000", "--raw", raw, "--limit", 2)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["limited"] is True
    assert summary["splits"]["train"]["classes"] == {"0": 1, "1": 1}
    assert summary["splits"]["valid"] == summary["splits"]["test"]


def test_other_symbols_are_no_full_set(raw, prepare, monkeypatch):
    counts = {"train": 6, "valid": 2, "test": 2}
    monkeypatch.setattr("preprocess.imdb.DATA_SET", replace(DATA_SET, counts=counts))
    for arguments in ([], ["--cut", 5], ["--tokenizer", "sentencepiece", "--vocab-size", 290]):
        out = prepare("imdb-4000", "--raw", raw, "--overwrite", *arguments)
        assert json.loads((out / "summary.json").read_text())["limited"] is bool(arguments)


def test_cut_is_an_option(raw, prepare):
    out = prepare("imdb-4000", "--raw", raw, "--limit", 100, "--cut", 5)
    assert token_lines(out / "src-bin", "train")[0] == expected(ORDER[0], cut=5)


def test_incomplete_releases_are_refused(raw, fail, tmp_path):
    assert "train has 6 examples, expected 25,000" in fail("imdb-4000", "--raw", raw)
    assert "aclImdb" in fail("imdb-4000", "--raw", raw / "train" / "unsup")
    assert "no such file" in fail("imdb-4000", "--raw", tmp_path / "nothing")


def test_without_raw_file_the_message_says_what_to_do(fail, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    message = fail("imdb-4000")
    for part in ("aclImdb_v1.tar.gz", "https://ai.stanford.edu/", "lra_data/raw",
                 "python -m preprocess imdb-4000"):  # fmt: skip
        assert part in message


def test_raw_file_is_found_in_its_place(raw, prepare, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lra_data" / "raw").mkdir(parents=True)
    raw.rename(tmp_path / "lra_data" / "raw" / "aclImdb")
    assert prepare("imdb-4000", "--limit", 100)


def test_sentencepiece_keeps_the_layout_and_the_text(raw, prepare):
    options = ("--raw", raw, "--limit", 100)
    out = prepare("imdb-4000", *options, "--tokenizer", "sentencepiece", "--vocab-size", 288)
    processor = sentencepiece.SentencePieceProcessor(str(out / "sentencepiece.model"))
    for name, line in zip(ORDER, token_lines(out / "src-bin", "train"), strict=True):
        text = REVIEWS[name].decode(errors="replace")
        assert line == [*processor.encode(text, out_type=str)[:4000], "</s>"]
    bytewise = prepare("imdb-4000", *options, out=out.parent / "bytes")
    for split in ("train", "valid", "test"):
        assert token_lines(out / "label-bin", split) == token_lines(bytewise / "label-bin", split)
    assert json.loads((out / "summary.json").read_text())["options"]["vocab_size"] == 288


def test_vocab_size_is_checked(fail):
    assert "--vocab-size" in fail("imdb-4000", "--demo", "--vocab-size", 400)
    message = fail("imdb-4000", "--demo", "--tokenizer", "sentencepiece", "--vocab-size", 90)
    assert "--vocab-size 90" in message


def test_demo_is_reproducible_and_learnable(prepare, tmp_path):
    out = prepare("imdb-4000", "--demo")
    assert files(out) == files(prepare("imdb-4000", "--demo", out=tmp_path / "again"))
    correct = 0
    for line, (label, _) in zip(
        token_lines(out / "src-bin", "test"), token_lines(out / "label-bin", "test"), strict=True
    ):
        text = bytes(map(int, line[:-1]))
        assert 100 <= len(text) <= 400
        negative, positive = (
            sum(map(text.count, letters)) for letters in ([*b"abcdef"], [*b"ghijkl"])
        )
        correct += (positive > negative) == (label == "1")
    assert correct > 450


def test_dictionaries_of_another_set_are_kept_whichever_bytes_it_lacks(raw, prepare, tmp_path):
    whole = prepare("imdb-4000", *SMALL, "--raw", raw)
    cut = prepare(
        "imdb-4000", *SMALL, "--raw", raw, "--cut", 2, "--dictionaries", whole, out=tmp_path / "cut"
    )
    for side in ("src-bin", "label-bin"):
        assert files(cut)[f"{side}/dict.txt"] == files(whole)[f"{side}/dict.txt"]
    assert token_lines(cut / "src-bin", "train") == [expected(name, 2) for name in ORDER]


def test_dictionaries_without_a_byte_of_train_are_refused(raw, prepare, fail, tmp_path):
    first = prepare("imdb-4000", *SMALL, "--raw", raw, "--cut", 1)
    message = fail("imdb-4000", *SMALL, "--raw", raw, "--dictionaries", first)
    assert f"{first}/src-bin/dict.txt: this dictionary lacks" in message
