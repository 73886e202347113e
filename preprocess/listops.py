"""ListOps: nested operations on lists of digits; the label is the digit they evaluate to.

    python -m preprocess listops                      generate the full set, 96,000/2,000/2,000
    python -m preprocess listops --demo               a small set of short expressions
    python -m preprocess listops --raw lra_release.gz read `basic_{train,val,test}.tsv` of the
                                                      LRA release (archive or directory)

Writes `src-bin/` and `label-bin/`. Symbols are the ten digits, `[MIN`, `[MAX`, `[MED`, `[SM` and
`]`; parentheses, which the release has as well, say nothing more and are dropped.

An expression is a random tree (Tay et al. 2021, "Long Range Arena", section 2.2.1, after Nangia
and Bowman 2018): a node above the largest depth is an operator with probability 0.25, else a
digit; an operator is any of the four and takes 2-10 arguments, each number equally likely. An
expression counts when its length lies strictly between the limits and it is not there yet. MED
is the median, halves cut off; SM is the sum modulo ten. The same seed gives the same files, byte
for byte, on any number of workers.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from fairseq_csp.data.files import numbered_lines
from fairseq_csp.datasets import DATASETS
from fairseq_csp.errors import UserError
from fairseq_csp.flags import positive
from preprocess.archives import RawRelease
from preprocess.parallel import ordered_map
from preprocess.preparation import add_common_arguments, prepare
from preprocess.progress import progress
from preprocess.summary import SPLITS, Figures
from preprocess.text_format import TextDatasetWriter

DATA_SET = DATASETS["listops"]
DIGITS = tuple("0123456789")
SYMBOLS = (*DIGITS, "[MIN", "[MAX", "[MED", "[SM", "]")
MIN, MAX, MED, SM, CLOSE = range(10, 15)

_OPERATOR_PROBABILITY = 0.25
_CHUNK = 8192  # trees drawn at a time; part of what a seed means
_PATIENCE = 50  # chunks without enough news before giving up
_RELEASE_FILES = {"basic_train.tsv": "train", "basic_val.tsv": "valid", "basic_test.tsv": "test"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What shapes a generated set; lengths count tokens, and both limits are exclusive."""

    train_size: int = DATA_SET.counts["train"]
    valid_size: int = DATA_SET.counts["valid"]
    test_size: int = DATA_SET.counts["test"]
    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_args: int = 10


DEMO = Settings(train_size=3000, valid_size=500, test_size=500, min_length=20, max_length=100)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this data set."""
    add_common_arguments(parser, DATA_SET)
    for field in fields(Settings):
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=positive,
            metavar="N",
            help=f"generator (default: {field.default}; demo: {getattr(DEMO, field.name)})",
        )
    parser.add_argument(
        "--dictionaries",
        type=Path,
        metavar="DIR",
        help="a prepared ListOps set whose dictionaries to take, so that models trained on either "
        "set can be trained further on the other (default: new ones, by falling count)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Prepare the set from ``--raw``, or generate it."""
    given = {
        field.name: value
        for field in fields(Settings)
        if (value := getattr(arguments, field.name)) is not None
    }
    if arguments.raw:
        if given or arguments.demo:
            flag = next(iter(given), "demo").replace("_", "-")
            raise UserError(f"--{flag} belongs to the generator and cannot be used with --raw")
        release = RawRelease(arguments.raw)
        prepare(
            DATA_SET,
            arguments,
            partial(
                read_release, release, limit=arguments.limit, dictionaries=arguments.dictionaries
            ),
            expected=DATA_SET.counts,
            source=release.description,
            options={"limit": arguments.limit},
        )
        return

    settings = replace(DEMO if arguments.demo else Settings(), **given)
    if arguments.limit:
        sizes = (f"{split}_size" for split in SPLITS)
        settings = replace(
            settings, **{size: min(getattr(settings, size), arguments.limit) for size in sizes}
        )
    prepare(
        DATA_SET,
        arguments,
        partial(
            generate,
            settings,
            seed=arguments.seed,
            workers=arguments.workers,
            dictionaries=arguments.dictionaries,
        ),
        expected={split: getattr(settings, f"{split}_size") for split in SPLITS},
        source=lambda: {"generator": "listops", "seed": arguments.seed},
        options=asdict(settings),
    )


def read_release(
    release: RawRelease,
    directory: Path,
    *,
    limit: int | None = None,
    dictionaries: Path | None = None,
) -> Figures:
    """Convert the TSV files of the LRA release (header, then expression TAB label).

    Raises:
        UserError: a file is missing or a line is not an expression and its label.
    """
    with _writer(directory, dictionaries) as writer:
        files = release.files(
            lambda name: _RELEASE_FILES.get(PurePosixPath(name).name), "basic_{train,val,test}.tsv"
        )
        for name, file in files:
            split = _RELEASE_FILES[PurePosixPath(name).name]
            where = release.where(name)
            for number, line in islice(numbered_lines(file, where), limit and limit + 1):
                text = line.decode(errors="replace")
                source, _, target = text.partition("\t")
                if number == 1:
                    if (source, target) != ("Source", "Target"):
                        raise UserError(f"{where}, line 1: expected the header Source TAB Target")
                    continue
                try:
                    codes, value = encode(source)
                    if target != str(value):
                        raise ValueError(f"its value is {value}, its label {target!r}")
                except ValueError as error:
                    raise UserError(
                        f"{where}, line {number}: not a ListOps expression, TAB and the digit that "
                        f"it evaluates to: {error}"
                    ) from error
                writer.add(split, value, codes)
        return writer.finish()


def encode(text: str) -> tuple[np.ndarray, int]:
    """Return the codes uint8 (length,) of an expression and the digit that it evaluates to.

    Raises:
        ValueError: it is no expression; the message says why.
    """
    symbols = text.replace("(", " ").replace(")", " ").split()
    value = evaluate_symbols(symbols)
    return np.array([_CODES[symbol] for symbol in symbols], dtype=np.uint8), value


def evaluate_symbols(symbols: Sequence[str]) -> int:
    """Return the digit that an expression evaluates to.

    Args:
        symbols: Its symbols, parentheses left out.

    Raises:
        ValueError: it is no expression; the message says why.
    """
    # the innermost list is last; the first one is that of the expression itself
    lists: list[tuple[str, list[int]]] = [("", [])]
    for symbol in symbols:
        if symbol in _DIGIT_VALUES:
            lists[-1][1].append(_DIGIT_VALUES[symbol])
        elif symbol in _OPERATIONS:
            lists.append((symbol, []))
        elif symbol != "]":
            raise ValueError(f"{symbol[:40]!r} is no symbol")
        elif len(lists) == 1:
            raise ValueError("a ] closes nothing")
        else:
            operator, values = lists.pop()
            if not values:
                raise ValueError(f"{operator} has no argument")
            lists[-1][1].append(_OPERATIONS[operator](values))
    if len(lists) > 1:
        raise ValueError(f"{lists[-1][0]} is not closed")
    values = lists[0][1]
    if len(values) != 1:
        raise ValueError(f"there are {len(values)} expressions" if values else "it is empty")
    return values[0]


def _median(values: list[int]) -> int:
    ordered = sorted(values)
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) // 2


_CODES = {symbol: code for code, symbol in enumerate(SYMBOLS)}
_DIGIT_VALUES = {digit: value for value, digit in enumerate(DIGITS)}
_OPERATIONS = {
    "[MIN": min,
    "[MAX": max,
    "[MED": _median,
    "[SM": lambda values: sum(values) % 10,
}


def generate(
    settings: Settings,
    directory: Path,
    *,
    seed: int,
    workers: int = 1,
    dictionaries: Path | None = None,
) -> Figures:
    """Generate the three splits, without duplicates across them.

    Raises:
        UserError: there are too few distinct expressions of the lengths asked for.
    """
    sizes = {split: getattr(settings, f"{split}_size") for split in SPLITS}
    examples = distinct_expressions(settings, seed=seed, workers=workers, count=sum(sizes.values()))
    splits = (split for split, size in sizes.items() for _ in range(size))
    with _writer(directory, dictionaries) as writer:
        for split, (codes, label) in zip(splits, examples, strict=True):
            writer.add(split, label, codes)
        return writer.finish()


def _writer(directory: Path, dictionaries: Path | None) -> TextDatasetWriter:
    return TextDatasetWriter(directory, symbols=SYMBOLS, labels=DIGITS, dictionaries=dictionaries)


def distinct_expressions(
    settings: Settings, *, seed: int, workers: int, count: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield ``count`` expressions, each as codes (length,) uint8 and its label.

    Raises:
        UserError: there are too few distinct ones of the lengths asked for.
    """
    if settings.max_args < 2:
        raise UserError("--max-args must be at least 2")
    seen: set[bytes] = set()
    last_progress = (0, 0)
    chunks = ordered_map(partial(_accepted, settings, seed), itertools.count(), workers)
    with progress(what="generating", total=count, unit=" examples") as shown:
        for number, (codes, lengths, labels) in enumerate(chunks):
            for expression, label in zip(
                np.split(codes, np.cumsum(lengths))[:-1], labels.tolist(), strict=True
            ):
                key = hashlib.blake2b(expression.tobytes(), digest_size=16).digest()
                if key in seen:
                    continue
                seen.add(key)
                shown.update()
                yield expression, label
                if len(seen) == count:
                    return
            if number - last_progress[0] >= _PATIENCE:
                if len(seen) - last_progress[1] <= count // 1000:
                    raise UserError(
                        f"found only {len(seen):,} of {count:,} distinct expressions longer than "
                        f"{settings.min_length} and shorter than {settings.max_length} tokens; "
                        "widen --min-length/--max-length, raise --max-depth/--max-args, or ask "
                        "for fewer examples"
                    )
                last_progress = (number, len(seen))


def _accepted(
    settings: Settings, seed: int, chunk: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one chunk of trees and keep those of the right length.

    Returns:
        Codes of all kept expressions one after the other (uint8), their lengths, their labels.
    """
    rng = np.random.default_rng((seed, chunk))
    levels, lengths = draw_trees(rng, _CHUNK, settings)
    kept = (settings.min_length < lengths) & (lengths < settings.max_length)
    arities = [arity[kept[tree]] for tree, arity in levels]
    codes = [
        np.where(
            arity > 0,
            rng.integers(MIN, CLOSE, arity.size, dtype=np.uint8),
            rng.integers(0, 10, arity.size, dtype=np.uint8),
        )
        for arity in arities
    ]
    return write_out(arities, codes), lengths[kept], evaluate(arities, codes)


def draw_trees(
    rng: np.random.Generator, trees: int, settings: Settings
) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Draw the shapes of random trees, all trees at once, level by level.

    A tree that has reached the largest length, and so will be rejected, is not grown further.

    Returns:
        For each level, the tree of each node and its number of arguments (0 for a digit), nodes
        in the order of their parents; and the number of tokens of each tree.
    """
    tree = np.arange(trees)
    lengths = np.zeros(trees, dtype=np.int64)
    levels = []
    for depth in range(1, settings.max_depth + 1):
        arity = np.zeros(tree.size, dtype=np.int64)
        if depth < settings.max_depth:
            operator = rng.random(tree.size) < _OPERATOR_PROBABILITY
            arity[operator] = rng.integers(2, settings.max_args + 1, np.count_nonzero(operator))
        # an operator takes two tokens, its name and the closing bracket
        lengths += np.bincount(tree, minlength=trees)
        lengths += np.bincount(tree[arity > 0], minlength=trees)
        arity[lengths[tree] >= settings.max_length] = 0
        levels.append((tree, arity))
        tree = np.repeat(tree, arity)
    return levels, lengths


def evaluate(arities: list[np.ndarray], codes: list[np.ndarray]) -> np.ndarray:
    """Return the value of each root, from the levels of trees as :func:`draw_trees` has them."""
    values = codes[-1].astype(np.int64)
    for arity, code in zip(arities[-2::-1], codes[-2::-1], strict=True):
        operator = arity > 0
        upper = code.astype(np.int64)
        if operator.any():
            count = arity[operator]
            start = np.cumsum(count) - count
            # sorted within each list: the list's number goes before the value
            ordered = np.sort(np.repeat(np.arange(count.size), count) * 10 + values) % 10
            results = {
                MIN: ordered[start],
                MAX: ordered[start + count - 1],
                MED: (ordered[start + (count - 1) // 2] + ordered[start + count // 2]) // 2,
                SM: np.add.reduceat(values, start) % 10,
            }
            upper[operator] = np.choose(code[operator] - MIN, list(results.values()))
        values = upper
    return values


def write_out(arities: list[np.ndarray], codes: list[np.ndarray]) -> np.ndarray:
    """Write the trees as token codes (uint8), in depth-first order, one tree after the other."""
    spans = [np.ones(arities[-1].size, dtype=np.int64)]
    for arity in arities[-2::-1]:
        span = np.ones(arity.size, dtype=np.int64)
        operator = arity > 0
        if operator.any():
            count = arity[operator]
            span[operator] = 2 + np.add.reduceat(spans[0], np.cumsum(count) - count)
        spans.insert(0, span)

    text = np.empty(spans[0].sum(), dtype=np.uint8)
    position = np.cumsum(spans[0]) - spans[0]
    for level, (arity, code, span) in enumerate(zip(arities, codes, spans, strict=True)):
        operator = arity > 0
        text[position] = code
        text[(position + span - 1)[operator]] = CLOSE
        if operator.any():
            count = arity[operator]
            below = np.cumsum(spans[level + 1]) - spans[level + 1]
            first = below[np.cumsum(count) - count]
            position = below + np.repeat(position[operator] + 1 - first, count)
        else:
            break
    return text
