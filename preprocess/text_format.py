"""The processed text layout: fairseq's memory-mapped token files and dictionaries.

    NAME/src-bin/{train,valid,test}.{bin,idx}, dict.txt      the input (src1-bin: a second one)
    NAME/label-bin/{train,valid,test}.{bin,idx}, dict.txt    one label a line

as ``fairseq-preprocess --only-source`` writes them: every sequence ends with EOS, symbols stand
in the dictionary by falling count in the train split, padded to a multiple of eight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fairseq.data import Dictionary, indexed_dataset

from fairseq_csp.data.tokens import load_dictionary
from fairseq_csp.errors import UserError
from preprocess.progress import progress
from preprocess.summary import SPLITS, Figures, SplitFigures

LABEL_DIRECTORY = "label-bin"
DICTIONARY_FILE = "dict.txt"
SHARED_DICTIONARY_DIRECTORY = "dict-bin"


class TextDatasetWriter:
    """Takes examples one at a time, in bounded memory, and writes the processed layout.

    A dictionary needs the counts of the whole train split before the first id can be written, so
    the sequences wait in spool files inside the target directory until :meth:`finish`.

    Args:
        directory: An empty directory, see :func:`preprocess.directories.new_directory`.
        symbols: The text of every code that a sequence may hold; code i stands for symbols[i].
        labels: The names of the labels; label i is labels[i].
        inputs: Names of the inputs of one example: ``src``, or ``src`` and ``src1``, which then
            share a dictionary.
        dictionaries: A prepared set whose dictionaries are taken instead, so that every symbol
            and class keeps its number. None: by falling count.
    """

    def __init__(
        self,
        directory: Path,
        *,
        symbols: Sequence[str],
        labels: Sequence[str],
        inputs: Sequence[str] = ("src",),
        dictionaries: Path | None = None,
    ) -> None:
        self._given = (None, None)
        if dictionaries:
            symbols_path = dictionaries / f"{inputs[0]}-bin" / DICTIONARY_FILE
            labels_path = dictionaries / LABEL_DIRECTORY / DICTIONARY_FILE
            self._given = (
                _read_dictionary(symbols_path, symbols),
                _read_dictionary(labels_path, labels),
            )
            _check_holds(self._given[1], labels, labels_path)
            self._given_from = symbols_path
        self._directory = directory
        self._symbols = symbols
        self._label_names = list(labels)
        self._inputs = tuple(inputs)
        self._dtype = np.dtype(np.uint8 if len(symbols) <= 256 else np.int32)
        self._counts = np.zeros(len(symbols), dtype=np.int64)
        self._labels = {split: [] for split in SPLITS}
        self._lengths = {(split, side): [] for split in SPLITS for side in self._inputs}
        self._spools = {key: self._spool_path(*key).open("wb") for key in self._lengths}

    def _spool_path(self, split: str, side: str) -> Path:
        return self._directory / f"{split}.{side}.spool"

    def __enter__(self) -> TextDatasetWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        for spool in self._spools.values():
            spool.close()

    def examples(self, split: str) -> int:
        """Return how many examples ``split`` has so far."""
        return len(self._labels[split])

    def add(self, split: str, label: int, *sequences: np.ndarray) -> None:
        """Append one example: its label and one array (length,) of codes for each input."""
        for side, codes in zip(self._inputs, sequences, strict=True):
            self._spools[split, side].write(codes.astype(self._dtype, copy=False).tobytes())
            self._lengths[split, side].append(len(codes))
            if split == "train":
                self._counts += np.bincount(codes, minlength=len(self._counts))
        self._labels[split].append(label)

    def finish(self, *, valid_from: str = "valid") -> Figures:
        """Write dictionaries and token files, remove the spools, and return the figures.

        Args:
            valid_from: The split that is written as ``valid``; ``test`` makes both the same.
        """
        source_of = {split: split for split in SPLITS} | {"valid": valid_from}
        for spool in self._spools.values():
            spool.close()

        dictionary, label_dictionary = self._given
        if dictionary:
            used = [self._symbols[code] for code in np.flatnonzero(self._counts)]
            _check_holds(dictionary, used, self._given_from)
        dictionary = dictionary or _dictionary(self._symbols, self._counts)
        ids = ids_of(dictionary, self._symbols)
        for side in self._inputs:
            self._save_dictionary(dictionary, f"{side}-bin")
            for split in SPLITS:
                self._write_input(source_of[split], side, split, ids, dictionary)
        if len(self._inputs) > 1:
            self._save_dictionary(dictionary, SHARED_DICTIONARY_DIRECTORY)
        for split, side in self._lengths:
            self._spool_path(split, side).unlink()

        classes = np.bincount(self._labels["train"], minlength=len(self._label_names))
        label_dictionary = label_dictionary or _dictionary(
            self._label_names, classes, keep_unseen=True
        )
        label_ids = ids_of(label_dictionary, self._label_names)
        self._save_dictionary(label_dictionary, LABEL_DIRECTORY)
        for split in SPLITS:
            with _TokenFile(self._directory / LABEL_DIRECTORY / split, label_dictionary) as file:
                for label in self._labels[source_of[split]]:
                    file.add(label_ids[label : label + 1])
        return Figures(
            splits={split: self._figures(source_of[split]) for split in SPLITS},
            symbols=len(dictionary),
        )

    def _save_dictionary(self, dictionary: Dictionary, directory: str) -> None:
        path = self._directory / directory / DICTIONARY_FILE
        path.parent.mkdir()
        dictionary.save(str(path))
        if Dictionary.load(str(path)) != dictionary:
            raise UserError(f"{path}: a symbol of this dictionary does not survive being saved")

    def _write_input(
        self, source: str, side: str, split: str, ids: np.ndarray, dictionary: Dictionary
    ) -> None:
        lengths = self._lengths[source, side]
        with (
            open(self._spool_path(source, side), "rb") as spool,
            _TokenFile(self._directory / f"{side}-bin" / split, dictionary) as file,
        ):
            for length in progress(lengths, f"writing {side}-bin/{split}", unit=" examples"):
                file.add(ids[np.fromfile(spool, dtype=self._dtype, count=length)])

    def _figures(self, split: str) -> SplitFigures:
        lengths = {side: np.array(self._lengths[split, side]) + 1 for side in self._inputs}
        return SplitFigures.of(lengths, np.array(self._labels[split], int), self._label_names)


class _TokenFile:
    """One ``.bin``/``.idx`` pair; every sequence added gets an EOS."""

    def __init__(self, prefix: Path, dictionary: Dictionary) -> None:
        self._prefix = str(prefix)
        self._eos = dictionary.eos()
        self._builder = indexed_dataset.make_builder(
            indexed_dataset.data_file_path(self._prefix), "mmap", vocab_size=len(dictionary)
        )

    def __enter__(self) -> _TokenFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._builder.finalize(indexed_dataset.index_file_path(self._prefix))

    def add(self, ids: np.ndarray) -> None:
        self._builder.add_item(torch.from_numpy(np.append(ids, self._eos)))


def _dictionary(
    symbols: Sequence[str], counts: np.ndarray, *, keep_unseen: bool = False
) -> Dictionary:
    dictionary = Dictionary()
    for symbol, count in zip(symbols, counts, strict=True):
        if count or keep_unseen:
            dictionary.add_symbol(symbol, n=int(count))
    dictionary.finalize()
    return dictionary


def _read_dictionary(path: Path, symbols: Sequence[str]) -> Dictionary:
    """Read the dictionary of a prepared set.

    Raises:
        UserError: it is not there, is not a dictionary, or holds other symbols than these.
    """
    dictionary = load_dictionary(str(path))
    known = {*symbols, *Dictionary().symbols}
    strange = (symbol for symbol in dictionary.symbols if symbol not in known)
    for symbol in strange:
        if not symbol.startswith("madeupword"):
            raise UserError(f"{path}: {symbol!r} is no symbol of this data set, but of another's")
    return dictionary


def _check_holds(dictionary: Dictionary, symbols: Sequence[str], path: Path) -> None:
    if missing := [symbol for symbol in symbols if symbol not in dictionary]:
        raise UserError(f"{path}: this dictionary lacks {missing[0]!r}; it is of another data set")


def ids_of(dictionary: Dictionary, symbols: Sequence[str]) -> np.ndarray:
    """Return the dictionary id of every code; those that train lacks become unknown."""
    return np.array([dictionary.index(symbol) for symbol in symbols], dtype=np.int64)
