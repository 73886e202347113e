"""IMDB film reviews as bytes: negative (0) or positive (1).

    python -m preprocess imdb-4000 --raw aclImdb_v1.tar.gz    25,000/25,000/25,000 reviews
    python -m preprocess imdb-4000 --holdout 0.1              validate on a tenth of train instead
    python -m preprocess imdb-4000 --demo                     small synthetic texts

The raw release is the archive, or the directory `aclImdb/{train,test}/{pos,neg}/*.txt`. Writes
`src-bin/` and `label-bin/`; a review is cut at 4,000 symbols. The release has no validation
split: as in the published data, `valid` is a copy of `test` unless `--holdout` is given.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from fairseq_csp.data.files import read_whole
from fairseq_csp.datasets import DATASETS
from preprocess.archives import RawRelease
from preprocess.preparation import add_common_arguments, prepare, standin_source
from preprocess.progress import progress
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

DATA_SET = DATASETS["imdb-4000"]
LABELS = ("0", "1")
DEMO_COUNTS = {"train": 3000, "valid": 500, "test": 500}

_LONGEST = 1 << 20  # bytes; the longest review has 13,704
_REVIEW = re.compile(r"(?:^|/)(train|test)/(neg|pos)/[^/]+\.txt$")

Reviews = Mapping[str, list[tuple[int, bytes]]]

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this data set."""
    add_common_arguments(parser, DATA_SET)
    add_tokenizer_arguments(parser)
    parser.add_argument(
        "--dictionaries",
        type=Path,
        metavar="DIR",
        help="a prepared IMDB set whose dictionaries to take, so that models trained on either set "
        "can be trained further on the other (default: new ones, by falling count)",
    )
    parser.add_argument(
        "--holdout",
        type=_fraction,
        metavar="FRACTION",
        help="validate on this part of train, chosen by --seed (default: valid is test)",
    )


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


_fraction.__name__ = "fraction"


def run(arguments: argparse.Namespace) -> None:
    """Prepare the set from its raw release, or make the stand-in."""
    expected, full = dict(DATA_SET.counts), None
    if arguments.demo:
        source = standin_source(DATA_SET, arguments, "texts whose class shows in their letters")
        read = partial(_standin, arguments.seed)
        expected = DEMO_COUNTS
    else:
        release = RawRelease(require_raw(DATA_SET, arguments))
        source = release.description
        read = partial(read_reviews, release, arguments.holdout, arguments.seed)
        if arguments.holdout:
            held_out = round(expected["train"] * arguments.holdout)
            full = expected = expected | {
                "train": expected["train"] - held_out,
                "valid": held_out,
            }
        else:
            logger.info(
                "imdb-4000: valid is a copy of test, as in the published data, so the best "
                "checkpoint is chosen on test; --holdout 0.1 validates on part of train instead"
            )
    prepare(
        DATA_SET,
        arguments,
        partial(_write, read, arguments),
        expected=expected,
        full=full,
        source=source,
        options={
            **tokenizer_options(arguments),
            "holdout": arguments.holdout,
            "seed": arguments.seed,
            "limit": arguments.limit,
        },
        changed=is_changed(arguments),
    )


def read_reviews(release: RawRelease, holdout: float | None, seed: int) -> Reviews:
    """Read the reviews of each split, (label, text), sorted by number.

    Args:
        release: The raw release.
        holdout: The part of train that becomes ``valid``; without it there is no ``valid``.
        seed: Chooses that part.

    Raises:
        UserError: the release holds no reviews.
    """
    found: dict[str, list[tuple[int, int, str, bytes]]] = {"train": [], "test": []}
    for name, file in release.files(
        lambda name: (match := _REVIEW.search(name)) and match[0].strip("/"),
        "reviews aclImdb/{train,test}/{pos,neg}/*.txt",
    ):
        split, label = _REVIEW.search(name).groups()
        stem = PurePosixPath(name).stem
        number = stem.split("_")[0]
        # sorted by number the classes alternate, and the archive's order does not matter
        key = int(number) if number.isdecimal() else -1
        text = read_whole(file, release.where(name), _LONGEST)
        found[split].append((key, ("neg", "pos").index(label), stem, text))
    reviews = {
        split: [(label, text) for _, label, _, text in sorted(items)]
        for split, items in found.items()
    }
    if holdout:
        train = reviews["train"]
        order = np.random.default_rng(seed).permutation(len(train))
        held_out = set(order[: round(len(train) * holdout)].tolist())
        reviews["train"] = [item for i, item in enumerate(train) if i not in held_out]
        reviews["valid"] = [item for i, item in enumerate(train) if i in held_out]
    return reviews


def _standin(seed: int) -> Reviews:
    rng = np.random.default_rng(seed)
    return {
        split: [
            (label, topic_text(rng, label, strength=0.15, lengths=(100, 400)))
            for label in rng.integers(0, 2, count).tolist()
        ]
        for split, count in DEMO_COUNTS.items()
    }


def _write(read: Callable[[], Reviews], arguments: argparse.Namespace, directory: Path) -> Figures:
    reviews = read()
    tokenizer = make_tokenizer(arguments, directory, lambda: (text for _, text in reviews["train"]))
    with TextDatasetWriter(
        directory,
        symbols=tokenizer.symbols,
        labels=LABELS,
        dictionaries=arguments.dictionaries,
    ) as writer:
        for split, items in reviews.items():
            for label, text in progress(
                items[: arguments.limit], f"encoding {split}", unit=" examples"
            ):
                writer.add(split, label, tokenizer.encode(text))
        return writer.finish(valid_from="valid" if "valid" in reviews else "test")
