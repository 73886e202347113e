"""Show one example of a prepared set, read back from the processed files.

    python -m preprocess show lra_data/imdb-4000 --split test --index 3
    python -m preprocess show lra_data/cifar10 --index 3 --png image.png

prints the text (bytes and SentencePiece pieces put together again), the label and the lengths; of
an image it prints the label and the size and draws a PNG.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from pathlib import Path

import sentencepiece
from fairseq.data import Dictionary
from PIL import Image

from fairseq_csp.data.pixels import load_labels, load_pixels
from fairseq_csp.data.tokens import load_dictionary, load_tokens
from fairseq_csp.errors import UserError
from preprocess.summary import SPLITS
from preprocess.text_format import DICTIONARY_FILE, LABEL_DIRECTORY
from preprocess.tokenizers import SENTENCEPIECE_FILE, ByteTokenizer

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("directory", type=Path, help="a prepared set")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: %(default)s")
    parser.add_argument(
        "--index", type=int, default=0, metavar="I", help="default: %(default)s, the first"
    )
    parser.add_argument(
        "--png",
        type=Path,
        metavar="FILE",
        help="where to draw an image (default: NAME-SPLIT-INDEX.png here)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Print one text, or draw one image."""
    directory = arguments.directory
    if (directory / LABEL_DIRECTORY).is_dir():
        sys.stdout.write(describe_text(directory, arguments.split, arguments.index))
    elif (directory / "input").is_dir():
        name = f"{directory.resolve().name}-{arguments.split}-{arguments.index}.png"
        png = arguments.png or Path(name)
        sys.stdout.write(describe_image(directory, arguments.split, arguments.index, png))
    else:
        raise UserError(
            f"{directory} is not a prepared set: it has neither {LABEL_DIRECTORY}/ nor input/"
        )


def describe_text(directory: Path, split: str, index: int) -> str:
    """Return label, lengths and texts of one example of a text set.

    Raises:
        UserError: the split is missing or has no such example.
    """
    label, _ = _example(directory / LABEL_DIRECTORY, split, index)
    lines = [f"{directory} {split} {index}", f"label: {' '.join(label)}"]
    for side in ("src", "src1"):
        folder = directory / f"{side}-bin"
        if folder.is_dir():
            symbols, dictionary = _example(folder, split, index)
            text = _text(symbols, dictionary, directory / SENTENCEPIECE_FILE)
            lines += [f"{side}: {len(symbols)} symbols and EOS", text]
    return "\n".join(lines) + "\n"


def describe_image(directory: Path, split: str, index: int, png: Path) -> str:
    """Draw one image of an image set to ``png``, and return its label and size.

    Raises:
        UserError: the split is missing or damaged or has no such image.
    """
    images = load_pixels(directory, split)
    labels = load_labels(directory, split, len(images))
    _check_index(directory, split, index, len(images))
    side = math.isqrt(images.shape[1])
    if side * side != images.shape[1]:
        raise UserError(f"{directory}: images of {images.shape[1]} pixels are not square")
    Image.fromarray(images[index].reshape(side, side)).save(png, format="PNG")
    return (
        f"{directory} {split} {index}\nlabel: {labels[index]}\n"
        f"{side * side} pixels, {side} x {side}, drawn as {png}\n"
    )


def _example(folder: Path, split: str, index: int) -> tuple[list[str], Dictionary]:
    """Return the symbols of one sequence, without EOS, and the dictionary they come from."""
    if not (folder / DICTIONARY_FILE).is_file() or not (folder / f"{split}.idx").is_file():
        raise UserError(f"{folder} has no {DICTIONARY_FILE} or no {split}.idx")
    dictionary = load_dictionary(str(folder / DICTIONARY_FILE))
    dataset = load_tokens(str(folder / split), dictionary)
    _check_index(folder, split, index, len(dataset))
    ids = dataset[index].tolist()
    return [dictionary[i] for i in ids if i != dictionary.eos()], dictionary


def _check_index(directory: Path, split: str, index: int, size: int) -> None:
    if not 0 <= index < size:
        raise UserError(f"--index {index}: {directory} {split} has examples 0 to {size - 1}")


def _text(symbols: list[str], dictionary: Dictionary, model: Path) -> str:
    if model.is_file():
        try:
            return sentencepiece.SentencePieceProcessor(str(model)).decode(symbols)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{model} is not a SentencePiece model ({error})") from error
    known = (symbol for symbol in dictionary.symbols if not symbol.startswith(("<", "madeupword")))
    values = {symbol: value for value, symbol in enumerate(ByteTokenizer.symbols)}
    if not all(symbol in values for symbol in known):
        return " ".join(symbols)
    # bytes; one that train lacks has lost its value
    unknown = "\N{REPLACEMENT CHARACTER}".encode()
    parts = (bytes([values[symbol]]) if symbol in values else unknown for symbol in symbols)
    text = b"".join(parts).decode("utf-8", errors="replace")
    # a terminal would obey other control characters
    return "".join(c if c.isprintable() or c in "\n\t\0" else f"\\x{ord(c):02x}" for c in text)
