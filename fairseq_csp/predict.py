"""Predict classes: ``python -m fairseq_csp.predict --path CHECKPOINT`` reads lines, and prints the
class and its probability of each.

A line is a text, a ListOps expression, or the name of an image file; of two documents (AAN) they
stand in one line with a tab between them.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from fairseq import utils

from fairseq_csp.data.files import numbered_lines, open_file
from fairseq_csp.errors import UserError
from fairseq_csp.flags import positive, user_directory
from fairseq_csp.output import printable

STANDARD_INPUT = "standard input"
IMAGES = (".png", ".jpg", ".jpeg")


def main(arguments: list[str]) -> int:
    """Print predictions, and return the exit status.

    Raises:
        UserError: the model or a file cannot be read, or a line cannot be encoded; what was
            predicted before it is printed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_csp.predict",
        description="Print the class and its probability of each line: of a text, of a ListOps "
        "expression, of the image file that it names, or of two texts with a tab between them.",
    )
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="files of lines, or images (default: stdin)")
    add("--path", required=True, help="a checkpoint, or the name of published weights")
    text = "the prepared data of the model, where the checkpoint does not tell enough of it"
    add("--data", type=Path, metavar="DIR", help=text)
    text = "print a JSON object a line, with the probabilities of all classes"
    add("--json", action="store_true", help=text)
    text = "lines predicted together (default: 32; from a terminal 1)"
    add("--batch-size", type=positive, metavar="N", help=text)
    add("--device", default="cpu", help="where to compute: cpu (default) or cuda")
    text = "your own user directory, where the model needs it"
    add("--user-dir", type=user_directory, metavar="DIR", help=text)
    args = parser.parse_args(arguments)
    if args.device != "cpu" and not (args.device == "cuda" and torch.cuda.is_available()):
        raise UserError(f"--device is {args.device}; it must be cpu, or cuda where there is a GPU")
    # registers what the checkpoint is made of
    from fairseq_csp import predictor

    if args.user_dir:
        utils.import_user_module(args)
    model = predictor.load(args.path, args.data).to(args.device)
    size = args.batch_size or (1 if not args.files and sys.stdin.isatty() else 32)
    names = None if isinstance(model.inputs, predictor.Texts) else IMAGES
    batch: list[tuple[str, int, object]] = []
    wrong = None
    try:
        for where, number, line in _lines(args.files, names):
            try:
                batch.append((where, number, model.encode(line)))
            except UserError as error:
                wrong = UserError(f"{printable(where)}, line {number}: {error}")
                break
            if len(batch) == size:
                _print(model, batch, args.json)
                batch = []
    finally:
        # also where a file cannot be read, what stands before it is predicted
        _print(model, batch, args.json)
    if wrong:
        raise wrong
    return 0


def _lines(
    files: Iterable[str], images: tuple[str, ...] | None
) -> Iterator[tuple[str, int, bytes]]:
    """Yield file, number and content of each line; an image is the one line of its name."""
    for name in list(files) or ["-"]:
        if images and name.lower().endswith(images):
            yield name, 1, os.fsencode(name)
            continue
        with _open(name) as file:
            where = STANDARD_INPUT if name == "-" else name
            for number, line in numbered_lines(file, where):
                yield where, number, line


def _open(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if name == "-":
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return open_file(name)
    except OSError as error:
        raise UserError(f"{printable(name)} cannot be read ({error.strerror})") from None


def _print(model: torch.nn.Module, batch: list[tuple[str, int, object]], as_json: bool) -> None:
    predictions = model.classify([encoded for _, _, encoded in batch])
    for (where, number, _), found in zip(batch, predictions, strict=True):
        line = f"{printable(found.name)}\t{found.probability:.4f}"
        if as_json:
            line = json.dumps(
                {
                    "file": where,
                    "line": number,
                    "class": found.name,
                    "probability": found.probability,
                    "probabilities": found.probabilities,
                }
            )
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # what reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
