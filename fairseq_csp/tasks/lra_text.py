"""LRA's text tasks: ListOps, IMDB and, with two documents an example, AAN."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from fairseq.data import (
    Dictionary,
    FairseqDataset,
    PrependTokenDataset,
    RightPadDataset,
    TruncateDataset,
)
from fairseq.tasks import register_task

from fairseq_csp.checkpoints import TOKENIZERS
from fairseq_csp.data.lengths import LengthDataset
from fairseq_csp.data.summary import read_summary
from fairseq_csp.data.tokens import load_dictionary, load_tokens
from fairseq_csp.errors import UserError
from fairseq_csp.models.config import POOLINGS
from fairseq_csp.tasks.lra import LRATask, LRATaskConfig, kept_value

logger = logging.getLogger(__name__)


@dataclass
class LRATextConfig(LRATaskConfig):
    """Flags of the task; those that the model has as well take the model's value."""

    max_positions: int = field(default=4002, metadata={"help": "longer examples are cut"})
    sen_rep_type: POOLINGS = field(
        default="cls", metadata={"help": "cls puts a <CLS> in front of each example"}
    )
    batch_by_length: bool = field(
        default=False,
        metadata={"help": "train on batches of similar lengths, which on a GPU is less padding"},
    )


@register_task("lra-text", dataclass=LRATextConfig)
class LRATextTask(LRATask):
    """Classify one or two sequences of symbols.

    The directory holds ``src-bin``, ``label-bin`` and, for two documents, ``src1-bin`` (and the
    dictionary of both in ``dict-bin``), as ``fairseq-preprocess`` writes them.

    Args:
        cfg: the task's configuration.
        dictionary: symbols of the source.
        label_dictionary: the classes.
        kept: what a checkpoint keeps of the task, in the place of the data directory.

    Raises:
        UserError: the order of the examples is asked for in two ways, or the data directory is not
            there.

    Attributes:
        tokenizer: what made symbols of a text: ``bytes``, ``sentencepiece``, or ``symbols`` (it
            consists of them); None where the data do not tell, as published ones.
        cut: symbols of a text that were kept, before EOS; None: all, or the data do not tell.
    """

    def __init__(
        self,
        cfg: LRATextConfig,
        dictionary: Dictionary,
        label_dictionary: Dictionary,
        kept: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(cfg, kept)
        if cfg.batch_by_length and cfg.no_shuffle:
            raise UserError("--batch-by-length does not go with --no-shuffle: leave one out")
        self.dictionary = dictionary
        self.label_dictionary = label_dictionary
        self.cls = dictionary.add_symbol("<CLS>")
        if kept is None:
            self.documents = 2 if os.path.isdir(os.path.join(cfg.data, "src1-bin")) else 1
            self.tokenizer, self.cut = _preparation(cfg.data)
        else:
            self.documents = kept_value(kept, "documents")
            self.tokenizer, self.cut = kept_value(kept, "tokenizer"), kept_value(kept, "cut")
        # without the fill that pads the dictionary's size
        named = label_dictionary.symbols[label_dictionary.nspecial :]
        self.num_classes = sum(not symbol.startswith("madeupword") for symbol in named)

    @classmethod
    def setup_task(cls, cfg: LRATextConfig, **kwargs: object) -> "LRATextTask":
        """Load the dictionaries.

        Raises:
            UserError: the directory is not there or not of this layout.
        """
        shared = os.path.join(cfg.data, "dict-bin", "dict.txt")
        source = shared if os.path.exists(shared) else os.path.join(cfg.data, "src-bin", "dict.txt")
        dictionaries = []
        for path in (source, os.path.join(cfg.data, "label-bin", "dict.txt")):
            if not os.path.exists(path):
                raise UserError(
                    f"{path} is not there: is {cfg.data} the prepared data of a text task? "
                    "`python -m preprocess --help` tells how to prepare it"
                )
            dictionaries.append(load_dictionary(path))
        task = cls(cfg, *dictionaries)
        logger.info(
            f"{cfg.data}: {len(task.dictionary)} symbols, {task.num_classes} classes, "
            f"{task.documents} document(s) an example"
        )
        return task

    @classmethod
    def from_checkpoint(cls, cfg: LRATextConfig, kept: Mapping[str, object]) -> "LRATextTask":
        """Make the task without its data, for texts from elsewhere.

        Args:
            cfg: the task's configuration, of which the data directory is not used.
            kept: what the checkpoint keeps of the task.

        Raises:
            UserError: it keeps too little.
        """
        names = (kept_value(kept, key) for key in ("symbols", "classes"))
        return cls(cfg, *map(_dictionary, names), kept)

    def load_dataset(self, split: str, combine: bool = False, **kwargs: object) -> None:
        """Load a split: ``train``, ``valid`` or ``test``.

        Raises:
            UserError: it is not there, or its parts do not match.
        """
        source, lengths, sizes = self._source("src-bin", split)
        net_input = {"src_tokens": source, "src_lengths": lengths}
        if self.documents == 2:
            source1, lengths1, sizes1 = self._source("src1-bin", split)
            net_input |= {"src1_tokens": source1, "src1_lengths": lengths1}
            if len(sizes1) != len(sizes):
                raise UserError(
                    f"{self.cfg.data}: split {split} has {len(sizes):,} first documents and "
                    f"{len(sizes1):,} second ones: prepare it anew"
                )
            sizes = sizes + sizes1
        self.datasets[split] = self.assemble(split, net_input, self._classes(split), sizes, source)
        logger.info(f"{split}: {len(sizes):,} examples, {sizes.mean():,.1f} symbols on average")

    def by_length(self, split: str) -> bool:
        """Whether the batches of a split are of examples of similar lengths.

        Those of valid and test are not: ``--max-valid-steps`` takes the first ones.
        """
        return self.cfg.batch_by_length and split == "train"

    def _classes(self, split: str) -> np.ndarray:
        """Return the class (examples,) of each example.

        Raises:
            UserError: the labels are not there, damaged, or more than one symbol.
        """
        prefix = os.path.join(self.cfg.data, "label-bin", split)
        labels = load_tokens(prefix)
        for example in np.flatnonzero(labels.sizes > 2)[:1]:
            raise UserError(
                f"{prefix}.bin: label {example} has {labels.sizes[example]} symbols, expected one "
                "and the end of the sentence: prepare the data anew"
            )
        classes = np.fromiter((int(label[0]) for label in labels), np.int64, len(labels))
        return classes - self.label_dictionary.nspecial

    def input_state(self) -> dict[str, object]:
        """Return symbols and classes, documents of an example, and what a text was made of."""
        return {
            "symbols": list(self.dictionary.symbols),
            "classes": list(self.label_dictionary.symbols),
            "documents": self.documents,
            "tokenizer": self.tokenizer,
            "cut": self.cut,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Compare the dictionaries with those of a checkpoint that is to be used.

        Raises:
            UserError: one is another. Published checkpoints do not tell theirs.
        """
        super().load_state_dict(state_dict)
        dictionaries = {"symbols": self.dictionary, "classes": self.label_dictionary}
        for kind, dictionary in dictionaries.items():
            own, theirs = dictionary.symbols, state_dict.get(kind, ())
            for number, (word, other) in enumerate(zip(own, theirs, strict=False)):
                if word != other:
                    raise UserError(
                        f"{self.cfg.data} has another dictionary of {kind} ({len(own):,}) than the "
                        f"checkpoint was trained with ({len(theirs):,}): number {number} is "
                        f"{word!r} here and {other!r} there"
                    )

    def _source(self, part: str, split: str) -> tuple[FairseqDataset, FairseqDataset, np.ndarray]:
        path = os.path.join(self.cfg.data, part, split)
        return self.inputs(load_tokens(path, self.dictionary), f"{part}/{split}")

    def inputs(
        self, source: FairseqDataset, where: str
    ) -> tuple[FairseqDataset, FairseqDataset, np.ndarray]:
        """Make of sequences of symbols what the model takes.

        Args:
            source: the sequences, each ended by EOS.
            where: how to call them in a warning.

        Returns:
            The sequences, batches of which are padded; their lengths; and these as (examples,).
        """
        if str(self.cfg.sen_rep_type) == "cls":
            source = PrependTokenDataset(source, self.cls)
        longer = int((np.asarray(source.sizes) > self.cfg.max_positions).sum())
        if longer:
            logger.warning(
                f"{longer:,} of {len(source):,} examples in {where} are longer than "
                f"--max-positions {self.cfg.max_positions} and are cut to it"
            )
            source = TruncateDataset(source, self.cfg.max_positions)
        padded = RightPadDataset(source, pad_idx=self.dictionary.pad())
        return padded, LengthDataset(source), np.asarray(source.sizes)

    @property
    def source_dictionary(self) -> Dictionary:
        """Symbols of the source, ``<CLS>`` included."""
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        """The classes, behind the special symbols."""
        return self.label_dictionary


def _preparation(data: str) -> tuple[str | None, int | None]:
    """Return the tokenizer of a prepared set, and how many symbols of a text were kept."""
    options = (read_summary(data) or {}).get("options")
    if not isinstance(options, dict):
        return None, None
    tokenizer, cut = options.get("tokenizer", "symbols"), options.get("cut")
    return (
        tokenizer if tokenizer in TOKENIZERS else None,
        cut if type(cut) is int and cut > 0 else None,
    )


def _dictionary(names: list[str]) -> Dictionary:
    """Return the dictionary of these names, in their order.

    Raises:
        UserError: they are not those of a dictionary.
    """
    dictionary = Dictionary()
    for name in names[dictionary.nspecial :]:
        dictionary.add_symbol(name)
    if dictionary.symbols != names:
        raise UserError("the checkpoint's symbols or classes are not those of a dictionary")
    return dictionary
