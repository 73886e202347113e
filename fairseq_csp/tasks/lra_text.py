"""LRA's text tasks: ListOps, IMDB and, with two documents an example, AAN."""

import logging
import os
from dataclasses import dataclass, field

import numpy as np
import torch
from fairseq.data import (
    BaseWrapperDataset,
    Dictionary,
    FairseqDataset,
    IdDataset,
    NestedDictionaryDataset,
    NumelDataset,
    NumSamplesDataset,
    PrependTokenDataset,
    RightPadDataset,
    SortDataset,
    TruncateDataset,
    data_utils,
)
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING

from fairseq_csp.errors import UserError
from fairseq_csp.models.config import POOLINGS

logger = logging.getLogger(__name__)


@dataclass
class LRATextConfig(FairseqDataclass):
    """Flags of the task; those that the model has as well take the model's value."""

    data: str = field(default=MISSING, metadata={"help": "directory of the prepared data"})
    max_positions: int = field(default=4002, metadata={"help": "longer examples are cut"})
    sen_rep_type: POOLINGS = field(
        default="cls", metadata={"help": "cls puts a <CLS> in front of each example"}
    )
    sentence_class_num: int = field(default=2, metadata={"help": "number of classes"})
    no_shuffle: bool = field(default=False, metadata={"help": "train in the order of the data"})
    seed: int = II("common.seed")


@register_task("lra-text", dataclass=LRATextConfig)
class LRATextTask(FairseqTask):
    """Classify one or two sequences of symbols.

    The directory holds ``src-bin``, ``label-bin`` and, for two documents, ``src1-bin`` (and the
    dictionary of both in ``dict-bin``), as ``fairseq-preprocess`` writes them.

    Args:
        cfg: the task's configuration.
        dictionary: symbols of the source.
        label_dictionary: the classes.
    """

    def __init__(
        self, cfg: LRATextConfig, dictionary: Dictionary, label_dictionary: Dictionary
    ) -> None:
        super().__init__(cfg)
        self.dictionary = dictionary
        self.label_dictionary = label_dictionary
        self.cls = dictionary.add_symbol("<CLS>")
        self.documents = 2 if os.path.isdir(os.path.join(cfg.data, "src1-bin")) else 1

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
            dictionaries.append(Dictionary.load(path))
        task = cls(cfg, *dictionaries)
        logger.info(
            f"{cfg.data}: {len(task.dictionary)} symbols, {task.num_classes} classes, "
            f"{task.documents} document(s) an example"
        )
        return task

    @property
    def num_classes(self) -> int:
        """Classes the label dictionary names, without the fill that pads its size."""
        named = self.label_dictionary.symbols[self.label_dictionary.nspecial :]
        return sum(not symbol.startswith("madeupword") for symbol in named)

    def build_model(self, cfg: FairseqDataclass, from_checkpoint: bool = False) -> BaseFairseqModel:
        """Build the model.

        Raises:
            UserError: it has fewer classes than the data.
        """
        if cfg.sentence_class_num < self.num_classes:
            raise UserError(
                f"--sentence-class-num is {cfg.sentence_class_num}, but {self.cfg.data} has "
                f"{self.num_classes} classes: is the architecture one for this data set?"
            )
        return super().build_model(cfg, from_checkpoint)

    def load_dataset(self, split: str, combine: bool = False, **kwargs: object) -> None:
        """Load a split: ``train``, ``valid`` or ``test``.

        Raises:
            UserError: it is not there, or its parts do not match.
        """
        target = self._labels(split)
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
        if len(target) != len(sizes):
            raise UserError(
                f"{self.cfg.data}: split {split} has {len(sizes):,} examples and "
                f"{len(target):,} labels: prepare it anew"
            )
        self.datasets[split] = batches(
            net_input,
            target,
            sizes,
            ntokens=source,
            shuffle=not self.cfg.no_shuffle,
            seed=self.cfg.seed,
        )
        logger.info(f"{split}: {len(sizes):,} examples, {sizes.mean():,.1f} symbols on average")

    def _load(self, part: str, split: str, dictionary: Dictionary) -> FairseqDataset:
        path = os.path.join(self.cfg.data, part, split)
        dataset = data_utils.load_indexed_dataset(path, dictionary)
        if dataset is None:
            raise UserError(f"{path}.idx is not there: {self.cfg.data} has no split named {split}")
        return dataset

    def _labels(self, split: str) -> "ClassDataset":
        return ClassDataset(
            self._load("label-bin", split, self.label_dictionary), self.label_dictionary.nspecial
        )

    def _source(self, part: str, split: str) -> tuple[FairseqDataset, FairseqDataset, np.ndarray]:
        source = self._load(part, split, self.dictionary)
        if str(self.cfg.sen_rep_type) == "cls":
            source = PrependTokenDataset(source, self.cls)
        longer = int((np.asarray(source.sizes) > self.cfg.max_positions).sum())
        if longer:
            logger.warning(
                f"{longer:,} of {len(source):,} examples in {part}/{split} are longer than "
                f"--max-positions {self.cfg.max_positions} and are cut to it"
            )
            source = TruncateDataset(source, self.cfg.max_positions)
        padded = RightPadDataset(source, pad_idx=self.dictionary.pad())
        return padded, NumelDataset(source), np.asarray(source.sizes)

    def max_positions(self) -> None:
        """Set no bound: longer examples have been cut."""
        return None

    @property
    def source_dictionary(self) -> Dictionary:
        """Symbols of the source, ``<CLS>`` included."""
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        """The classes, behind the special symbols."""
        return self.label_dictionary


class ClassDataset(BaseWrapperDataset):
    """Classes from label sequences: the number of the one symbol, less the special ones."""

    def __init__(self, labels: FairseqDataset, specials: int) -> None:
        super().__init__(labels)
        self.specials = specials

    def __getitem__(self, index: int) -> int:
        return int(self.dataset[index][0]) - self.specials

    def collater(self, samples: list[int]) -> torch.Tensor:
        """Return (batch,) int64."""
        return torch.tensor(samples)


def batches(
    net_input: dict[str, FairseqDataset],
    target: FairseqDataset,
    sizes: np.ndarray,
    *,
    ntokens: FairseqDataset,
    shuffle: bool,
    seed: int,
) -> FairseqDataset:
    """Put the parts of a classification data set together.

    Args:
        net_input: the model's arguments by name.
        target: the class of each example.
        sizes: (examples,) positions of each example.
        ntokens: what to count positions of.
        shuffle: order the examples at random, by ``seed``, instead of as they are.
        seed: of the order.

    Returns:
        A data set of samples with ``id``, ``net_input``, ``target``, ``ntokens``, ``nsentences``.
    """
    dataset = NestedDictionaryDataset(
        {
            "id": IdDataset(),
            "net_input": net_input,
            "target": target,
            "nsentences": NumSamplesDataset(),
            "ntokens": NumelDataset(ntokens, reduce=True),
        },
        sizes=[sizes],
    )
    if not shuffle:
        return dataset
    with data_utils.numpy_seed(seed):
        return SortDataset(dataset, sort_order=[np.random.permutation(len(dataset))])
