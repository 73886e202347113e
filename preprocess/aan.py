"""AAN paper pairs as bytes: does one paper cite the other (1) or not (0).

    python -m preprocess aan --raw lra_release.gz     147,086/18,090/17,437 pairs
    python -m preprocess aan --demo                   small synthetic pairs

Reads `new_aan_pairs.{train,eval,test}.tsv` of the LRA release (archive or directory): five columns
without a header or quoting, the label as a decimal number, two ids, and two texts as Python bytes
literals. Writes `src-bin/` and `src1-bin/` with one dictionary for both, again in `dict-bin/`, and
`label-bin/`; each text is cut at 4,000 symbols. Pairs are read one at a time, so memory does not
grow with the 2.8 GB of text.
"""

from __future__ import annotations

import argparse
import codecs
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from fairseq_csp.data.files import numbered_lines
from fairseq_csp.datasets import DATASETS
from fairseq_csp.errors import UserError
from preprocess.archives import RawRelease
from preprocess.preparation import add_common_arguments, prepare, standin_source
from preprocess.sources import require_raw
from preprocess.standin_text import topic_text
from preprocess.summary import Figures
from preprocess.text_format import TextDatasetWriter
from preprocess.tokenizers import (
    add_tokenizer_arguments,
    is_changed,
    make_tokenizer,
    tokenizer_options,
)

DATA_SET = DATASETS["aan"]
LABELS = ("0", "1")
DEMO_COUNTS = {"train": 3000, "valid": 500, "test": 500}

_FILES = {
    "new_aan_pairs.train.tsv": "train",
    "new_aan_pairs.eval.tsv": "valid",
    "new_aan_pairs.test.tsv": "test",
}
_LITERAL_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}

Pair = tuple[str, int, bytes, bytes]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this data set."""
    add_common_arguments(parser, DATA_SET)
    add_tokenizer_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prepare the set from its raw release, or make the stand-in."""
    if arguments.demo:
        source = standin_source(DATA_SET, arguments, "texts that share a topic (1) or do not (0)")
        pairs, expected = partial(_standin, arguments.seed), DEMO_COUNTS
    else:
        release = RawRelease(require_raw(DATA_SET, arguments))
        source = release.description
        pairs, expected = partial(read_pairs, release), DATA_SET.counts
    prepare(
        DATA_SET,
        arguments,
        partial(_write, pairs, arguments),
        expected=expected,
        source=source,
        options={
            **tokenizer_options(arguments),
            "seed": arguments.seed,
            "limit": arguments.limit,
        },
        changed=is_changed(arguments),
    )


def read_pairs(release: RawRelease) -> Iterator[Pair]:
    """Yield (split, label, text, other text) of each pair, in the order of the release.

    Raises:
        UserError: a line is not five columns of the expected kinds; it is named.
    """
    for name, file in release.files(
        lambda name: _FILES.get(PurePosixPath(name).name), "new_aan_pairs.{train,eval,test}.tsv"
    ):
        split = _FILES[PurePosixPath(name).name]
        where = release.where(name)
        for number, line in numbered_lines(file, where):
            try:
                pair = _parse(line)
            except ValueError as error:
                raise UserError(f"{where}, line {number}: {error}") from error
            yield split, *pair


def _parse(line: bytes) -> tuple[int, bytes, bytes]:
    columns = line.decode("utf-8").split("\t")
    if len(columns) != 5:
        raise ValueError(f"{len(columns)} columns, expected label, two ids, two texts")
    label, _, _, *texts = columns
    if label not in _LITERAL_LABELS:
        raise ValueError(f"label {label!r} is neither 0.0 nor 1.0")
    return _LITERAL_LABELS[label], *map(_bytes_literal, texts)


def _bytes_literal(text: str) -> bytes:
    """Read ``b'...'`` without evaluating anything."""
    quote, body = text[1:2], text[2:-1]
    if len(text) > 2 and text[0] == "b" and quote in "'\"" and text[-1] == quote:
        unescaped = body.replace("\\\\", "").replace(f"\\{quote}", "")
        if quote not in unescaped and not unescaped.endswith("\\"):
            # not bytes, or an escape that is cut short
            with suppress(ValueError):
                return codecs.escape_decode(body.encode("ascii"))[0]
    raise ValueError(f"{text[:40]!r}... is not a Python bytes literal")


def _standin(seed: int) -> Iterator[Pair]:
    rng = np.random.default_rng(seed)
    for split, count in DEMO_COUNTS.items():
        for label in rng.integers(0, 2, count).tolist():
            topic = rng.integers(0, 4)
            other = topic if label else (topic + rng.integers(1, 4)) % 4
            yield (
                split,
                label,
                *(
                    topic_text(rng, chosen, strength=0.5, lengths=(100, 200))
                    for chosen in (topic, other)
                ),
            )


def _write(
    pairs: Callable[[], Iterator[Pair]], arguments: argparse.Namespace, directory: Path
) -> Figures:
    tokenizer = make_tokenizer(
        arguments,
        directory,
        lambda: (text for split, _, *texts in pairs() if split == "train" for text in texts),
    )
    with TextDatasetWriter(
        directory, symbols=tokenizer.symbols, labels=LABELS, inputs=("src", "src1")
    ) as writer:
        for split, label, *texts in pairs():
            if arguments.limit is None or writer.examples(split) < arguments.limit:
                writer.add(split, label, *map(tokenizer.encode, texts))
        return writer.finish()
