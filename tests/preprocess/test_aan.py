import json
import tarfile
import zipfile

import pytest
import sentencepiece
from fairseq.data import Dictionary

from tests.helpers.processed import files, token_lines

# the traps: both kinds of quotes, tabs and newlines inside, a lone quote (no quoting is done),
# not ASCII, backslashes, an empty text, longer than the cut
PAIRS = {
    "train": [
        ("1.0", b'it\'s "quoted"\tand tabbed\n', b'one " only'),
        ("0.0", "naïve – \\n".encode(), b"\x00\xff\\"),
        ("1.0", b"", b"x" * 5000),
    ],
    "eval": [("0.0", b"'" * 3, b'"')],
    "test": [("1.0", b"two", b"# words, b'nested'"), ("0.0", b"Q", b"x")],
}
NAMES = {"train": "train", "eval": "valid", "test": "test"}


def write(directory, pairs=PAIRS):
    directory.mkdir(parents=True, exist_ok=True)
    for name, lines in pairs.items():
        text = "".join(
            f"{label}\tID{i}\tID\t{a!r}\t{b!r}\n" for i, (label, a, b) in enumerate(lines)
        )
        (directory / f"new_aan_pairs.{name}.tsv").write_text(text)


@pytest.fixture
def raw(tmp_path):
    write(tmp_path / "raw" / "lra_release" / "lra_release" / "tsv_data")
    return tmp_path / "raw"


def expected(text):
    train = {byte for _, a, b in PAIRS["train"] for byte in a[:4000] + b[:4000]}
    return [str(value) if value in train else "<unk>" for value in text[:4000]] + ["</s>"]


def check(out):
    for name, split in NAMES.items():
        for side, column in (("src-bin", 1), ("src1-bin", 2)):
            assert token_lines(out / side, split) == [expected(x[column]) for x in PAIRS[name]]
        assert token_lines(out / "label-bin", split) == [[x[0][0], "</s>"] for x in PAIRS[name]]
    texts = {(out / side / "dict.txt").read_text() for side in ("src-bin", "src1-bin", "dict-bin")}
    assert len(texts) == 1
    assert len(Dictionary.load(str(out / "dict-bin" / "dict.txt"))) % 8 == 0


def test_directory_tar_and_zip(raw, prepare, tmp_path):
    check(prepare("aan", "--raw", raw, "--limit", 100))
    with tarfile.open(tmp_path / "lra_release.gz", "w:gz") as tar:
        tar.add(raw, ".")
    check(prepare("aan", "--raw", tmp_path / "lra_release.gz", "--limit", 9, out=tmp_path / "b"))
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as archive:
        for path in raw.rglob("*.tsv"):
            archive.write(path, path.relative_to(raw))
    check(prepare("aan", "--raw", tmp_path / "release.zip", "--limit", 9, out=tmp_path / "c"))


def test_summary_counts_both_texts(raw, prepare):
    summary = json.loads((prepare("aan", "--raw", raw, "--limit", 2) / "summary.json").read_text())
    train = summary["splits"]["train"]
    assert train["examples"] == 2
    assert train["max_length"] == {"src": 26, "src1": 11}
    assert train["classes"] == {"0": 1, "1": 1}


def test_wrong_counts_are_refused(raw, fail):
    assert "train has 3 examples, expected 147,086" in fail("aan", "--raw", raw)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1.0\tA\tB\tb'x'", "4 columns"),
        ("1.0\tA\tB\tb'x'\tb'y'\tb'z'", "6 columns"),
        ("2.0\tA\tB\tb'x'\tb'y'", "label '2.0'"),
        ("label\tid1\tid2\ttext1\ttext2", "label 'label'"),
        ("1.0\tA\tB\t'x'\tb'y'", "not a Python bytes literal"),
        ("1.0\tA\tB\tb'x'\tb'y", "not a Python bytes literal"),
        ("1.0\tA\tB\tb'x'\tb'y' + b'y'", "not a Python bytes literal"),
        ("1.0\tA\tB\tb'x'\tb'a'.join([b'b'])", "not a Python bytes literal"),
        ("1.0\tA\tB\tb'x'\tb'%s' % __import__('os').getcwd() or b''", "bytes literal"),
        ("1.0\tA\tB\tb'x'\tb'é'", "not a Python bytes literal"),
    ],
)
def test_a_bad_line_is_named_and_never_evaluated(raw, fail, line, reason):
    path = raw / "lra_release" / "lra_release" / "tsv_data" / "new_aan_pairs.eval.tsv"
    path.write_text(path.read_text() + line + "\n")
    message = fail("aan", "--raw", raw, "--limit", 9)
    assert f"{path}, line 2" in message and reason in message


def test_files_that_an_editor_saved_are_read_alike(raw, prepare):
    for path in (raw / "lra_release" / "lra_release" / "tsv_data").iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    check(prepare("aan", "--raw", raw, "--limit", 100))


def test_the_same_file_twice_is_refused(raw, fail):
    write(raw / "copy", {"test": PAIRS["test"]})
    message = fail("aan", "--raw", raw, "--limit", 9)
    assert "new_aan_pairs.test.tsv and " in message and "only one can be meant" in message


def test_sentencepiece_has_one_model_for_both_texts(raw, prepare):
    options = ("--tokenizer", "sentencepiece", "--vocab-size", 280)
    out = prepare("aan", "--raw", raw, "--limit", 9, *options)
    processor = sentencepiece.SentencePieceProcessor(str(out / "sentencepiece.model"))
    for side, column in (("src-bin", 1), ("src1-bin", 2)):
        for pair, line in zip(PAIRS["train"], token_lines(out / side, "train"), strict=True):
            text = pair[column].decode(errors="replace")
            assert line == [*processor.encode(text, out_type=str)[:4000], "</s>"]


def test_demo_is_reproducible_and_its_label_is_a_shared_topic(prepare, tmp_path):
    out = prepare("aan", "--demo")
    assert files(out) == files(prepare("aan", "--demo", out=tmp_path / "again"))
    topics = []
    for side in ("src-bin", "src1-bin"):
        texts = [bytes(map(int, line[:-1])) for line in token_lines(out / side, "test")]
        letters = (b"abcdef", b"ghijkl", b"mnopqr", b"stuvwx")
        topics.append(
            [max(range(4), key=lambda i, t=text: sum(map(t.count, letters[i]))) for text in texts]
        )
    labels = [label for label, _ in token_lines(out / "label-bin", "test")]
    same = [str(int(a == b)) for a, b in zip(*topics, strict=True)]
    assert sum(a == b for a, b in zip(same, labels, strict=True)) > 490
