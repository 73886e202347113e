import json
import re
import statistics
import tarfile

import numpy as np
import pytest
from fairseq.data import Dictionary

from preprocess.listops import (
    MAX,
    MED,
    MIN,
    SM,
    SYMBOLS,
    Settings,
    distinct_expressions,
    evaluate_symbols,
)
from tests.helpers.processed import files, token_lines

SMALL = ("--train-size", 300, "--valid-size", 40, "--test-size", 60)
SHORT = ("--min-length", 10, "--max-length", 60)


def evaluate(tokens):
    """Evaluate an expression by a stack, written apart from the generator."""
    stack = [[]]
    for token in tokens:
        if token == "]":
            operator, *values = stack.pop()
            values = [int(value) for value in values]
            result = {
                "[MIN": lambda v: min(v),
                "[MAX": lambda v: max(v),
                "[MED": lambda v: int(statistics.median(v)),
                "[SM": lambda v: sum(v) % 10,
            }[operator](values)
            stack[-1].append(result)
        elif token.startswith("["):
            stack.append([token])
        else:
            stack[-1].append(int(token))
    ((value,),) = stack
    return str(value)


def depth_and_arguments(tokens):
    depths, counts, stack = [0], [], []
    for token in tokens:
        if token == "]":
            counts.append(stack.pop())
        else:
            depths.append(len(stack) + 1)
            if stack:
                stack[-1] += 1
            if token.startswith("["):
                stack.append(0)
    return max(depths), counts


def test_every_generated_label_is_the_value_of_its_expression(prepare):
    out = prepare("listops", *SMALL)
    seen = set()
    for split, size in (("train", 300), ("valid", 40), ("test", 60)):
        sources = token_lines(out / "src-bin", split)
        labels = token_lines(out / "label-bin", split)
        assert len(sources) == len(labels) == size
        for source, label in zip(sources, labels, strict=True):
            assert source[-1] == label[-1] == "</s>"
            tokens = source[:-1]
            assert 500 < len(tokens) < 2000
            assert label == [evaluate(tokens), "</s>"]
            depth, counts = depth_and_arguments(tokens)
            assert depth <= 10
            assert min(counts) >= 2 and max(counts) <= 10
            seen.add(tuple(tokens))
    assert len(seen) == 400
    assert len(Dictionary.load(str(out / "src-bin" / "dict.txt"))) == 24


def test_same_seed_same_bytes_on_any_number_of_workers(prepare, tmp_path):
    one = prepare("listops", *SMALL, *SHORT, out=tmp_path / "one")
    two = prepare("listops", *SMALL, *SHORT, out=tmp_path / "two", workers=2)
    other = prepare("listops", *SMALL, *SHORT, "--seed", 7, out=tmp_path / "other")
    assert files(one) == files(two)
    assert files(one)["src-bin/train.bin"] != files(other)["src-bin/train.bin"]


def test_dictionaries_of_another_set_are_kept(prepare, fail, tmp_path):
    first = prepare("listops", *SMALL, *SHORT)
    own = prepare("listops", *SMALL, *SHORT, "--seed", 7, out=tmp_path / "own")
    taken = prepare(
        "listops", *SMALL, *SHORT, "--seed", 7, "--dictionaries", first, out=tmp_path / "taken"
    )
    for side in ("src-bin", "label-bin"):
        name = f"{side}/dict.txt"
        assert files(taken)[name] == files(first)[name] != files(own)[name]
        for split in ("train", "valid", "test"):
            assert token_lines(taken / side, split) == token_lines(own / side, split)

    assert "absent/src-bin/dict.txt" in fail("listops", *SMALL, "--dictionaries", "absent")
    for side in ("src-bin", "label-bin"):
        path = first / side / "dict.txt"
        whole = path.read_text()
        for line, fault in (
            ("nine 1\n", "'nine' is no symbol of this data set"),
            ("", "this dictionary lacks '9'"),
        ):
            path.write_text(re.sub("^9 .*\n", line, whole, flags=re.MULTILINE))
            assert f"{path}: {fault}" in fail("listops", *SMALL, "--dictionaries", first)
        path.write_text(whole)


def naive_length(rng, depth):
    if depth < 10 and rng.random() < 0.25:
        return 2 + sum(naive_length(rng, depth + 1) for _ in range(rng.integers(2, 11)))
    return 1


def test_lengths_are_those_of_plain_rejection_sampling():
    """Compare the share of each length and the operators with a recursive generator."""
    settings = Settings(min_length=3, max_length=12)
    expressions = [
        codes for chunk in range(2) for codes in np.split(*accepted(settings, chunk))[:-1]
    ]
    rng = np.random.default_rng(0)
    naive = [length for _ in range(20_000) if 3 < (length := naive_length(rng, 1)) < 12]
    lengths = [len(codes) for codes in expressions]
    assert len(lengths) / 16_384 == pytest.approx(len(naive) / 20_000, abs=0.015)
    for length in range(4, 12):
        assert np.mean(np.array(lengths) == length) == pytest.approx(
            np.mean(np.array(naive) == length), abs=0.04
        )
    counts = np.bincount(np.concatenate(expressions), minlength=len(SYMBOLS))
    operators = counts[[MIN, MAX, MED, SM]]
    assert operators / operators.sum() == pytest.approx(0.25, abs=0.03)
    assert counts[:10] / counts[:10].sum() == pytest.approx(0.1, abs=0.01)


def accepted(settings, chunk):
    from preprocess.listops import _accepted

    codes, lengths, _ = _accepted(settings, 1, chunk)
    return codes, np.cumsum(lengths)


def test_splits_share_no_expression_even_where_few_exist():
    settings = Settings(min_length=3, max_length=5, max_args=2)
    found = list(distinct_expressions(settings, seed=1, workers=1, count=390))
    assert len({codes.tobytes() for codes, _ in found}) == 390


def test_too_few_distinct_expressions_is_an_error(fail):
    message = fail("listops", *SMALL, "--min-length", 3, "--max-length", 5, "--max-args", 2,
                   "--train-size", 500)  # fmt: skip
    assert "found only 400 of 600 distinct expressions" in message
    assert "found only 0 of" in fail("listops", *SMALL, "--max-depth", 2)
    assert "--max-args" in fail("listops", *SMALL, "--max-args", 1)


def test_summary_tells_counts_seed_and_that_the_set_is_limited(prepare):
    out = prepare("listops", *SMALL, *SHORT, "--seed", 3)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["limited"] is True
    assert summary["symbols"] == 24
    assert summary["source"] == {"generator": "listops", "seed": 3}
    assert summary["options"]["max_length"] == 60
    train = summary["splits"]["train"]
    assert train["examples"] == 300 == sum(train["classes"].values())
    lengths = [len(tokens) for tokens in token_lines(out / "src-bin", "train")]
    assert train["mean_length"]["src"] == pytest.approx(np.mean(lengths), abs=0.01)
    assert train["max_length"]["src"] == max(lengths)


EXPRESSIONS = [
    ("( ( ( [MAX 2 ) ( ( ( [MED 7 ) 3 ) ] ) ) ] )", "5"),
    ("( ( ( [SM 9 ) 9 ) ] )", "8"),
    ("( ( ( [MIN 4 ) 6 ) ] )", "4"),
]


@pytest.fixture
def release(tmp_path):
    directory = tmp_path / "lra_release" / "lra_release" / "listops-1000"
    directory.mkdir(parents=True)
    for name in ("train", "val", "test"):
        lines = ["Source\tTarget", *("\t".join(pair) for pair in EXPRESSIONS)]
        (directory / f"basic_{name}.tsv").write_text("\n".join(lines) + "\n")
    (directory / "unrelated.tsv").write_text("left alone")
    return tmp_path / "lra_release"


def check_release(out):
    for split in ("train", "valid", "test"):
        assert token_lines(out / "src-bin", split) == [
            ["[MAX", "2", "[MED", "7", "3", "]", "]", "</s>"],
            ["[SM", "9", "9", "]", "</s>"],
            ["[MIN", "4", "6", "]", "</s>"],
        ]
        assert token_lines(out / "label-bin", split) == [[x, "</s>"] for x in "584"]


def test_reads_the_release_directory_and_archive(prepare, release, tmp_path):
    check_release(prepare("listops", "--raw", release, "--limit", 3))
    archive = tmp_path / "lra_release.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(release, "lra_release")
    out = prepare("listops", "--raw", archive, "--limit", 3, "--overwrite")
    check_release(out)
    assert len(json.loads((out / "summary.json").read_text())["source"]["sha256"]) == 64
    limited = prepare("listops", "--raw", archive, "--limit", 2, "--overwrite")
    assert len(token_lines(limited / "src-bin", "train")) == 2


def test_release_takes_dictionaries_of_another_set(prepare, release, tmp_path):
    generated = prepare("listops", *SMALL, *SHORT)
    out = tmp_path / "out"
    check_release(
        prepare("listops", "--raw", release, "--limit", 3, "--dictionaries", generated, out=out)
    )
    for name in ("src-bin/dict.txt", "label-bin/dict.txt"):
        assert files(out)[name] == files(generated)[name]


def test_release_with_wrong_counts_is_refused(fail, release):
    assert "train has 3 examples, expected 96,000" in fail("listops", "--raw", release)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("( [MAX 2 ] )", "its value is 2, its label ''"),
        ("( [AVG 2 ] )\t2", "'[AVG' is no symbol"),
        ("1\t12", "its value is 1, its label '12'"),
        ("1\t1.0", "its value is 1, its label '1.0'"),
        ("[MAX 1 2 ]\t9", "its value is 2, its label '9'"),
        ("[MED 1 2 4 9 ]\t4", "its value is 3, its label '4'"),
        ("] ] ]\t9", "a ] closes nothing"),
        ("[MAX 1 2\t2", "[MAX is not closed"),
        ("[MAX ]\t0", "[MAX has no argument"),
        ("1 2\t2", "there are 2 expressions"),
        ("\t2", "it is empty"),
        ("[SM 9 9 ]\t8\t8", "its label '8\\t8'"),
    ],
)
def test_a_bad_line_is_named(fail, release, line, reason):
    path = release / "lra_release" / "listops-1000" / "basic_val.tsv"
    path.write_text(path.read_text() + line + "\n")
    message = fail("listops", "--raw", release, "--limit", 9)
    assert f"{path}, line 5" in message
    assert reason in message


def test_a_release_that_an_editor_saved_is_read_alike(prepare, release):
    for path in (release / "lra_release" / "listops-1000").glob("basic_*.tsv"):
        lines = path.read_bytes().replace(b"\n", b"\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + lines + b"\r\n\n")
    check_release(prepare("listops", "--raw", release, "--limit", 9))
    path.write_bytes(lines.replace(b"\r\n", b"\r\n\r\n"))
    with pytest.raises(AssertionError, match="line 2: not a ListOps expression.*it is empty"):
        prepare("listops", "--raw", release, "--limit", 9, "--overwrite")


def test_generated_labels_are_those_of_the_reader(prepare):
    out = prepare("listops", *SMALL, *SHORT)
    for split in ("train", "valid", "test"):
        expressions = token_lines(out / "src-bin", split)
        labels = token_lines(out / "label-bin", split)
        for (*symbols, _), (label, _) in zip(expressions, labels, strict=True):
            assert evaluate_symbols(symbols) == int(label)


def test_generator_options_do_not_go_with_raw(fail, release):
    assert "--min-length" in fail("listops", "--raw", release, "--min-length", 5)
