"""What fairseq-train wrote in a log, be it ``--log-file`` or its output."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_csp.report.records import OddValueError, is_finite

# longer lines and files are none of fairseq's: its configuration takes some 20,000 characters
_LONGEST_LINE = 1 << 20
_LARGEST_FILE = 1 << 30

# what fairseq puts before each line of its output, but not of its log file
_PREFIX = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| \w+ \| [\w.]+ \| ")
_INSIDE_EPOCH = re.compile(r"epoch \d+:\s+\d+ / \d+ (.*)")
_EPOCH = re.compile(r"epoch \d+ \| (?:valid on '(\w+)' subset \| )?(.*)")
# fairseq prints some words of its configuration without quotes
_BARE_WORD = re.compile(r"(?<=': )(?!(?:True|False|None|inf|nan)\b)([A-Za-z_][\w.]*)(?=[,}])")


@dataclass(frozen=True)
class Point:
    """Loss in bits and accuracy in percent after an update."""

    loss: float
    accuracy: float


@dataclass
class Log:
    """What a log tells of a run.

    Attributes:
        config: fairseq's configuration by group and key, as last started; empty when the log does
            not begin with one, or one that cannot be read.
        curves: for ``train``, ``train_inner`` (means over an epoch, over a log interval) and each
            validated split the points by update.
        started: whether there is a configuration.
        trained: whether the training came to its end after it was last started.
        raised: the last line of a traceback after it was last started.
    """

    config: dict[str, dict] = field(default_factory=dict)
    curves: dict[str, dict[int, Point]] = field(default_factory=dict)
    started: bool = False
    trained: bool = False
    raised: str | None = None


def read_log(files: list[Path]) -> Log:
    """Read the logs of one run; what a resumed run did again replaces what was there.

    Args:
        files: the logs, oldest first. fairseq may have written a line several times.

    Raises:
        OddValueError: one is larger than any log.
        OSError: one cannot be read.
    """
    log = Log()
    in_traceback = False
    for file in files:
        for line in _lines(file):
            text = _PREFIX.sub("", line)
            if text.startswith("{'_name': None, 'common': {"):
                log.config, log.started = _read_config(text), True
                log.trained, log.raised = False, None
            elif text.startswith("done training in "):
                log.trained = True
            elif text.startswith("Traceback (most recent call last)"):
                in_traceback = True
            elif in_traceback and re.match(r"\w[\w.]*(:|$)", text):
                log.raised, in_traceback = text, False
            else:
                _read_point(text, log.curves)
    return log


def _lines(file: Path) -> Iterator[str]:
    """Yield the lines of a log; what a binary file has in their place comes in pieces."""
    if file.stat().st_size > _LARGEST_FILE:
        raise OddValueError(f"{file.name} has more than {_LARGEST_FILE >> 20:,} MiB")
    with open(file, encoding="utf-8", errors="replace") as lines:
        while line := lines.readline(_LONGEST_LINE):
            yield line.rstrip("\n")


def _read_config(text: str) -> dict[str, dict]:
    try:
        config = ast.literal_eval(_BARE_WORD.sub(lambda word: repr(word.group()), text))
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        # cut off, or no configuration at all
        return {}
    return config if isinstance(config, dict) else {}


def _read_point(text: str, curves: dict[str, dict[int, Point]]) -> None:
    split, stats = _statistics(text)
    try:
        point = Point(float(stats["loss"]), float(stats["accuracy"]))
        update = int(stats["num_updates"])
    except (KeyError, OverflowError, TypeError, ValueError):
        # no line of statistics, or one that was cut off
        return
    # (the loss of a run that diverged is nan, its accuracy is not)
    if is_finite(point.accuracy, update):
        curves.setdefault(split, {})[update] = point


def _statistics(text: str) -> tuple[str, dict[str, str]]:
    """Return the split and the statistics of a line in any of fairseq's formats."""
    if text.startswith('{"epoch": '):
        try:
            stats = json.loads(text)
        except (RecursionError, ValueError):
            return "", {}
        split = next((key[: -len("_loss")] for key in stats if key.endswith("_loss")), None)
        if split is None:
            return "train_inner", stats
        return split, {key.removeprefix(f"{split}_"): value for key, value in stats.items()}
    inside = _INSIDE_EPOCH.match(text)
    if inside:
        return "train_inner", dict(word.split("=", 1) for word in _words(inside[1], ", ", "="))
    whole = _EPOCH.match(text)
    if whole:
        words = _words(whole[2], " | ", " ")
        return whole[1] or "train", dict(word.split(" ", 1) for word in words)
    return "", {}


def _words(text: str, separator: str, sign: str) -> list[str]:
    return [word for word in text.split(separator) if sign in word]
