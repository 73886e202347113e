"""What LRA's text and image tasks have in common."""

import copy
import hashlib
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from fairseq.criterions import FairseqCriterion
from fairseq.data import (
    Dictionary,
    FairseqDataset,
    IdDataset,
    NestedDictionaryDataset,
    NumelDataset,
    NumSamplesDataset,
    SortDataset,
    data_utils,
    iterators,
)
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel
from fairseq.optim import FairseqOptimizer
from fairseq.tasks import FairseqTask
from omegaconf import II, MISSING
from torch import nn

from fairseq_csp.data.summary import read_summary
from fairseq_csp.errors import UserError
from fairseq_csp.fairseq_patches import early_stopping
from fairseq_csp.modules.attention import after_update

logger = logging.getLogger(__name__)


@dataclass
class LRATaskConfig(FairseqDataclass):
    """Flags of a task; those that the model has as well take the model's value."""

    data: str = field(default=MISSING, metadata={"help": "directory of the prepared data"})
    sentence_class_num: int = field(default=2, metadata={"help": "number of classes"})
    no_shuffle: bool = field(default=False, metadata={"help": "train in the order of the data"})
    tf32: bool = field(
        default=False,
        metadata={"help": "on a GPU: float32 products of numbers rounded to 11 bits (TF32)"},
    )
    seed: int = II("common.seed")


class LRATask(FairseqTask):
    """Classify sequences.

    Args:
        cfg: the task's configuration.
        kept: what a checkpoint keeps of the task, in the place of the data directory; None: the
            directory is read.

    Attributes:
        documents: how many documents an example has, 1 or 2.
        num_classes: classes that the data has.

    Raises:
        UserError: the data directory is not there.
    """

    documents = 1
    num_classes = 0

    def __init__(self, cfg: LRATaskConfig, kept: Mapping[str, object] | None = None) -> None:
        super().__init__(cfg)
        if kept is None and not os.path.isdir(cfg.data):
            raise UserError(
                f"{cfg.data} is no directory: `python -m preprocess --help` tells how to prepare "
                "data"
            )
        if cfg.tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        self._update, self._model = 0, None
        self._outlining = False
        self._prints: dict[str, dict] = {}
        self._expected: tuple[str, dict] | None = None
        if kept is None and _is_limited(cfg.data):
            logger.warning(
                f"{cfg.data} is a limited or synthetic set (its summary.json says so): accuracies "
                "on it cannot be compared with published ones"
            )

    @classmethod
    def from_checkpoint(cls, cfg: LRATaskConfig, kept: Mapping[str, object]) -> "LRATask":
        """Make the task without its data, for inputs from elsewhere.

        Args:
            cfg: the task's configuration, of which the data directory is not used.
            kept: what the checkpoint keeps of the task.

        Raises:
            UserError: it keeps too little.
        """
        raise UserError(f"a checkpoint does not keep what {cls.__name__} needs of its data")

    def input_state(self) -> dict[str, object]:
        """Return what inputs from elsewhere are encoded by, and the names of the classes."""
        return {}

    def build_model(self, cfg: FairseqDataclass, from_checkpoint: bool = False) -> BaseFairseqModel:
        """Build the model.

        Raises:
            UserError: it has fewer classes than the data, or does not fit into memory.
        """
        if cfg.sentence_class_num < self.num_classes:
            raise UserError(
                f"--sentence-class-num is {cfg.sentence_class_num}, but {self.cfg.data} has "
                f"{self.num_classes} classes: is the architecture one for this data set?"
            )
        if self._outlining:
            return super().build_model(cfg, from_checkpoint)
        outline = self.outline(cfg)
        if outline is not None:
            needed = sum(x.numel() * x.element_size() for x in outline.state_dict().values())
            if needed > available_memory():
                raise UserError(
                    f"the model would take {needed / 2**30:,.1f} GiB, more memory than is free "
                    "here: lower --max-positions or the sizes that you gave"
                )
        return super().build_model(cfg, from_checkpoint)

    def outline(self, cfg: FairseqDataclass) -> BaseFairseqModel | None:
        """Build the model without numbers, for the sizes of its weights.

        Args:
            cfg: the model's configuration.

        Returns:
            The model on torch's meta device; None where a part of it cannot be built so.
        """
        cfg = copy.deepcopy(cfg)
        if getattr(cfg, "apply_bert_init", False):
            # draws numbers on the host
            cfg.apply_bert_init = False
        self._outlining = True
        try:
            with torch.device("meta"):
                return self.build_model(cfg, True)
        except NotImplementedError:
            return None
        finally:
            self._outlining = False

    def can_reuse_epoch_itr(self, dataset: FairseqDataset) -> bool:
        """Whether a data set's loader serves all epochs: its examples stay what they are.

        fairseq 0.12.2 would start new loader processes at each epoch and let the old ones pile up.
        """
        return True

    def get_batch_iterator(self, *args: object, **kwargs: object) -> iterators.EpochBatchIterating:
        """Return an iterator over all examples.

        fairseq leaves out the last batch where its size is no multiple of
        ``--required-batch-size-multiple``, 8 unless told otherwise: test examples would be lost.
        Its thread that reads ahead (``--data-buffer-size``) is left out: loader workers read ahead
        themselves, and a process that ends while the thread is inside torch is aborted.

        Raises:
            UserError: an example is longer than ``--max-tokens``.
        """
        kwargs["required_batch_size_multiple"] = 1
        kwargs["data_buffer_size"] = 0
        most = kwargs.get("max_tokens")
        if most is not None:
            dataset = kwargs["dataset"] if "dataset" in kwargs else args[0]
            longest = max(dataset.num_tokens(index) for index in range(len(dataset)))
            if longest > most:
                raise UserError(
                    f"--max-tokens is {most:,}, but the longest example in {self.cfg.data} has "
                    f"{longest:,} positions: give at least that, or --batch-size"
                )
        return super().get_batch_iterator(*args, **kwargs)

    def has_sharded_data(self, split: str) -> bool:
        """Tell fairseq that a path with a colon in it is one path."""
        return False

    def optimizer_step(
        self, optimizer: FairseqOptimizer, model: nn.Module, update_num: int
    ) -> None:
        """Update the parameters, and then what attention functions renew themselves.

        Args:
            optimizer: of the parameters.
            model: what trains.
            update_num: how many updates there were before.
        """
        super().optimizer_step(optimizer, model, update_num)
        after_update(model, update_num + 1)

    def train_step(
        self,
        sample: dict,
        model: BaseFairseqModel,
        criterion: FairseqCriterion,
        optimizer: FairseqOptimizer,
        update_num: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[torch.Tensor, int, dict]:
        """Carry a batch forward and backward.

        Raises:
            UserError: the gradient of this update is not finite.
        """
        self._update, self._model = update_num + 1, model
        if isinstance(sys.exc_info()[1], FloatingPointError):
            # all workers have seen it, and fairseq begins to look for where it comes from
            raise self._diverged("gradient")
        return super().train_step(sample, model, criterion, optimizer, update_num, *args, **kwargs)

    def reduce_metrics(self, logging_outputs: list[dict], criterion: FairseqCriterion) -> None:
        """Log what the criterion makes of the outputs of all workers.

        Raises:
            UserError: the loss is not finite. It comes before a checkpoint is written, as fairseq
                validates before it does.
        """
        super().reduce_metrics(logging_outputs, criterion)
        if not math.isfinite(sum(float(log.get("loss", 0)) for log in logging_outputs)):
            raise self._diverged("loss")

    def state_dict(self) -> dict:
        """Return what a checkpoint keeps of the task.

        Raises:
            UserError: a weight of the model is not finite, so that no checkpoint is to be written.
        """
        if self._model is not None and not all(
            parameter.isfinite().all() for parameter in self._model.parameters()
        ):
            raise self._diverged("model")
        return {
            **super().state_dict(),
            "data": dict(self._prints),
            "early_stopping": early_stopping.state(),
            **self.input_state(),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Take up what a checkpoint keeps of the task."""
        early_stopping.restore(state_dict.get("early_stopping") or {})

    def expect_data(self, state_dict: dict, checkpoint: str) -> None:
        """Refuse, as soon as they are loaded, splits that a run was not begun with.

        Args:
            state_dict: what the run's checkpoint keeps of its task; earlier ones do not tell.
            checkpoint: its path.

        Raises:
            UserError: a split that is loaded is another one.
        """
        self._expected = checkpoint, state_dict.get("data") or {}
        self._compare_data()

    def note_data(
        self, split: str, classes: np.ndarray, sizes: np.ndarray, content: Callable[[int], bytes]
    ) -> None:
        """Note what a split is made of, for the checkpoint; compare it with a run's that goes on.

        Args:
            split: its name.
            classes: (examples,) class of each example.
            sizes: (examples,) positions of each example.
            content: what an example is, by its index.

        Raises:
            UserError: the run was begun with another one.
        """
        self._prints[split] = fingerprint(classes, sizes, content)
        self._compare_data()

    def _compare_data(self) -> None:
        checkpoint, expected = self._expected or ("", {})
        for split, found in self._prints.items():
            then = expected.get(split)
            if isinstance(then, dict) and then != found:
                raise UserError(
                    f"{self.cfg.data}: split {split} is not the one that {checkpoint} was trained "
                    f"with ({then.get('examples')} examples then, {found['examples']:,} here): "
                    "give its data, or another --save-dir to train anew"
                )

    def _diverged(self, what: str) -> UserError:
        if not self._update:
            return UserError(f"the {what} is not finite: the checkpoint is one that diverged")
        return UserError(
            f"update {self._update}: the {what} is not finite; the training diverges and ends, "
            "before a checkpoint is overwritten: lower --lr, lengthen --warmup-updates or lower "
            "--clip-norm"
        )

    def assemble(
        self,
        split: str,
        net_input: dict[str, FairseqDataset],
        classes: np.ndarray,
        sizes: np.ndarray,
        counted: FairseqDataset,
    ) -> FairseqDataset:
        """Put the parts of a split together, in random order unless told otherwise.

        Args:
            split: its name.
            net_input: the model's arguments by name.
            classes: (examples,) class of each example.
            sizes: (examples,) positions of each example.
            counted: what to count positions of for ``ntokens``.

        Returns:
            Samples of ``id``, ``net_input``, ``target``, ``ntokens`` and ``nsentences``.

        Raises:
            UserError: there are not as many labels as examples, or one is no class.
        """
        if len(classes) != len(sizes):
            raise UserError(
                f"{self.cfg.data}: split {split} has {len(sizes):,} examples and {len(classes):,} "
                "labels: prepare it anew"
            )
        for example in np.flatnonzero((classes < 0) | (classes >= self.cfg.sentence_class_num)):
            raise UserError(
                f"{self.cfg.data}: example {example} of split {split} has class "
                f"{classes[example]}, but with --sentence-class-num {self.cfg.sentence_class_num} "
                f"the classes are 0 to {self.cfg.sentence_class_num - 1}"
            )

        def content(index: int) -> bytes:
            # of pixels as well, on whichever machine they were normalised
            items = (source[index] for name, source in net_input.items() if name.endswith("tokens"))
            return b"".join(x.double().mul(1000).round().long().numpy().tobytes() for x in items)

        self.note_data(split, classes, sizes, content)
        dataset = NestedDictionaryDataset(
            {
                "id": IdDataset(),
                "net_input": net_input,
                "target": ClassDataset(classes),
                "nsentences": NumSamplesDataset(),
                "ntokens": NumelDataset(counted, reduce=True),
            },
            sizes=[sizes],
        )
        if self.cfg.no_shuffle:
            return dataset
        with data_utils.numpy_seed(self.cfg.seed):
            order = [np.random.permutation(len(dataset))]
        # the last key counts most
        return SortDataset(dataset, sort_order=order + ([sizes] if self.by_length(split) else []))

    def by_length(self, split: str) -> bool:
        """Whether the batches of a split are of examples of similar lengths."""
        return False

    def max_positions(self) -> None:
        """Set no bound: a task cuts longer examples itself."""
        return None

    @property
    def source_dictionary(self) -> Dictionary | None:
        """Symbols of the source; None for images."""
        return None

    @property
    def target_dictionary(self) -> Dictionary | None:
        """Names of the classes; None where they are numbers."""
        return None


def fingerprint(
    classes: np.ndarray, sizes: np.ndarray, content: Callable[[int], bytes]
) -> dict[str, object]:
    """Tell the examples of a split from others, without reading all of them.

    Args:
        classes: (examples,) class of each example.
        sizes: (examples,) positions of each example.
        content: what an example is, by its index.

    Returns:
        ``examples``, and ``sha256`` of all classes and sizes and of 64 examples throughout.
    """
    found = hashlib.sha256(np.asarray(classes, np.int64).tobytes())
    found.update(np.asarray(sizes, np.int64).tobytes())
    for index in np.linspace(0, len(sizes) - 1, 64).astype(int):
        found.update(content(int(index)))
    return {"examples": len(sizes), "sha256": found.hexdigest()}


def kept_value(kept: Mapping[str, object], key: str) -> object:
    """Return a value that a checkpoint keeps of its task.

    Raises:
        UserError: it does not.
    """
    if key not in kept:
        raise UserError(
            f"the checkpoint does not tell its {key.replace('_', ' ')}, as earlier and published "
            "ones do not: name the directory of the data that it was trained with (--data)"
        )
    return kept[key]


def available_memory() -> float:
    """Return the bytes of memory that are free, infinity where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = re.search(r"^MemAvailable:\s+(\d+) kB", file.read(), re.MULTILINE)
    except OSError:
        free = None
    return int(free[1]) * 1024 if free else math.inf


def _is_limited(directory: str) -> bool:
    """Whether the preparation marked a set as limited; a published one has no summary."""
    return bool((read_summary(directory) or {}).get("limited"))


class ClassDataset(FairseqDataset):
    """The class of each example.

    Args:
        classes: (examples,) integers.
    """

    def __init__(self, classes: np.ndarray) -> None:
        self.classes = classes

    def __getitem__(self, index: int) -> int:
        return int(self.classes[index])

    def __len__(self) -> int:
        return len(self.classes)

    def collater(self, samples: list[int]) -> torch.Tensor:
        """Return (batch,) int64."""
        return torch.tensor(samples)
