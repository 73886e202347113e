"""How the text sets turn bytes into symbols: each byte one, or SentencePiece.

Byte symbols are the decimal values of the bytes, ``"0"`` to ``"255"``.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from fairseq_csp.errors import UserError
from fairseq_csp.flags import positive

SENTENCEPIECE_FILE = "sentencepiece.model"
MAX_LENGTH = 4000
VOCAB_SIZE = 8192

_TRAINING_BYTES = 50_000_000
_TRAINING_LINE = 4000  # SentencePiece leaves out longer ones


class Tokenizer(Protocol):
    """Turns a text into codes; code i stands for ``symbols[i]``."""

    symbols: list[str]

    def encode(self, text: bytes) -> np.ndarray:
        """Return the codes (length,) of a text, cut at the largest length."""


class ByteTokenizer:
    """Every byte is a symbol."""

    symbols = [str(value) for value in range(256)]

    def __init__(self, max_length: int = MAX_LENGTH) -> None:
        self._max_length = max_length

    def encode(self, text: bytes) -> np.ndarray:
        """Return the codes uint8 (length,) of a text, cut at the largest length."""
        return np.frombuffer(text[: self._max_length], dtype=np.uint8)


class SentencePieceTokenizer:
    """A unigram model (Kudo and Richardson 2018) that falls back to bytes.

    Args:
        model: The trained model, as SentencePiece stores it.
        max_length: Longest result.
    """

    def __init__(self, model: bytes, max_length: int = MAX_LENGTH) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._max_length = max_length
        self.symbols = [self._processor.id_to_piece(i) for i in range(len(self._processor))]

    def encode(self, text: bytes) -> np.ndarray:
        """Return the codes int32 (length,) of a text, cut at the largest length."""
        codes = self._processor.encode(text.decode("utf-8", errors="replace"))
        return np.array(codes[: self._max_length], dtype=np.int32)

    @staticmethod
    def train(texts: Iterable[bytes], vocab_size: int) -> bytes:
        """Train a model on the first 50 MB of the texts; the same texts give the same model.

        Raises:
            UserError: the texts do not support ``vocab_size`` pieces.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_training_lines(texts),
                model_writer=model,
                vocab_size=vocab_size,
                byte_fallback=True,
                bos_id=-1,
                eos_id=-1,
                num_threads=1,  # the result depends on the number
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(f"--vocab-size {vocab_size}: SentencePiece says: {error}") from error
        return model.getvalue()


def _training_lines(texts: Iterable[bytes]) -> Iterator[str]:
    total = 0
    for text in texts:
        for start in range(0, len(text), _TRAINING_LINE):
            yield text[start : start + _TRAINING_LINE].decode("utf-8", errors="ignore")
        total += len(text)
        if total > _TRAINING_BYTES:
            return


def add_tokenizer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the text sets."""
    parser.add_argument(
        "--tokenizer", choices=("bytes", "sentencepiece"), default="bytes", help="default: bytes"
    )
    parser.add_argument(
        "--vocab-size",
        type=positive,
        metavar="N",
        help=f"pieces of --tokenizer sentencepiece (default: {VOCAB_SIZE})",
    )
    parser.add_argument(
        "--cut",
        type=positive,
        default=MAX_LENGTH,
        metavar="N",
        help="symbols of a text that are kept, before EOS (default: %(default)s)",
    )


def make_tokenizer(
    arguments: argparse.Namespace, directory: Path, train_texts: Callable[[], Iterable[bytes]]
) -> Tokenizer:
    """Return the tokenizer that the options ask for; a trained model is kept in ``directory``.

    Raises:
        UserError: ``--vocab-size`` without SentencePiece, or more than the texts support.
    """
    if arguments.tokenizer == "bytes":
        if arguments.vocab_size is not None:
            raise UserError("--vocab-size belongs to --tokenizer sentencepiece")
        return ByteTokenizer(arguments.cut)
    model = SentencePieceTokenizer.train(train_texts(), arguments.vocab_size or VOCAB_SIZE)
    (directory / SENTENCEPIECE_FILE).write_bytes(model)
    return SentencePieceTokenizer(model, arguments.cut)


def tokenizer_options(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the options of the text sets, for the summary."""
    options = {"tokenizer": arguments.tokenizer, "cut": arguments.cut}
    if arguments.tokenizer == "sentencepiece":
        options["vocab_size"] = arguments.vocab_size or VOCAB_SIZE
    return options


def is_changed(arguments: argparse.Namespace) -> bool:
    """Tell whether the options ask for other symbols than the Long Range Arena's."""
    return arguments.tokenizer != "bytes" or arguments.cut != MAX_LENGTH
