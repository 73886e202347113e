"""Image classification: colour or grey images, normalised by channel, augmented while training."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.data import FairseqDataset, iterators
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel
from fairseq.tasks import register_task
from omegaconf import open_dict

from fairseq_csp.data.augmentation import CROP, NONE, RESIZED_CROP, STRONGEST, Augmentation
from fairseq_csp.data.images import Description, ImageDataset, open_images
from fairseq_csp.errors import UserError
from fairseq_csp.models.vit import pair
from fairseq_csp.tasks.lra import LRATask, LRATaskConfig, kept_value

logger = logging.getLogger(__name__)
AUGMENTATIONS = ChoiceEnum([CROP, RESIZED_CROP, NONE])
TRAINING = "train"


@dataclass
class ImageClassificationConfig(LRATaskConfig):
    """Flags of the task; those that the model has as well take the model's value."""

    sentence_class_num: Optional[int] = field(  # noqa: UP045 (fairseq reads the annotations)
        default=None, metadata={"help": "number of classes (default: the data's)"}
    )
    crop_size: Any = field(
        default=224, metadata={"help": "pixels that images are brought to where they are files"}
    )
    pixel_mean: Any = field(
        default=None,
        metadata={"help": "mean of each channel, in [0, 1], with commas (default: the data's)"},
    )
    pixel_std: Any = field(
        default=None,
        metadata={"help": "standard deviation of each channel (default: the data's)"},
    )
    augmentation: Optional[AUGMENTATIONS] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "crop out of 4 zero pixels around the image, or resized-crop, each with a "
            "flip; or none (default: crop, or resized-crop where the images are files)"
        },
    )
    rand_augment: Any = field(
        default=None,
        metadata={"help": "RandAugment's number of operations and their strength, such as 2,9"},
    )
    mixup: float = field(
        default=0.0, metadata={"help": "mix pairs of images by a beta distribution of this"}
    )


@register_task("image-classification", dataclass=ImageClassificationConfig)
class ImageClassificationTask(LRATask):
    """Classify images; see :mod:`fairseq_csp.data.images` for what the directory holds.

    Args:
        cfg: the task's configuration.
        kept: what a checkpoint keeps of the task, in the place of the data directory.

    Attributes:
        image_size: height and width of an image.
        files: whether images are files, which are brought to that size.

    Raises:
        UserError: the data are not there or damaged, or a flag does not fit them.
    """

    def __init__(
        self, cfg: ImageClassificationConfig, kept: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(cfg, kept)
        self.description = Description.read(cfg.data) if kept is None else _description(kept)
        self.files = self.description.root is not None
        self.num_classes = len(self.description.classes)
        self.mean = self._by_channel("--pixel-mean", cfg.pixel_mean, self.description.mean)
        self.std = self._by_channel("--pixel-std", cfg.pixel_std, self.description.std)
        if min(self.std) <= 0:
            raise UserError(f"--pixel-std is {_listed(self.std)}; each must be above zero")
        self._tokens = 1
        if kept is not None:
            self.image_size = tuple(kept_value(kept, "image_size"))
        elif not self.files:
            # any split tells it: not all of them are everywhere
            self.image_size = self._size_of_pixels()
        else:
            self.image_size = pair(cfg.crop_size, "--crop-size")
        self.augmentation = self._augmentation()

    def _by_channel(self, flag: str, given: Any, of_data: tuple[float, ...]) -> tuple[float, ...]:
        values = of_data if given is None else _numbers(flag, given, float)
        if len(values) != len(of_data):
            raise UserError(
                f"{flag} has {len(values)} numbers, but the images of {self.cfg.data} have "
                f"{len(of_data)} channels: give one number for each, with commas between them"
            )
        return values

    def _size_of_pixels(self) -> tuple[int, int]:
        error = None
        for split in ("train", "valid", "test"):
            try:
                height, width, _ = open_images(self.cfg.data, split).shape[1:]
                return height, width
            except UserError as found:
                error = error or found
        raise error

    def _augmentation(self) -> Augmentation:
        cfg = self.cfg
        kind = cfg.augmentation or (RESIZED_CROP if self.files else CROP)
        operations, magnitude = 0, 0
        if cfg.rand_augment is not None:
            numbers = _numbers("--rand-augment", cfg.rand_augment, int)
            if len(numbers) != 2 or numbers[0] < 1 or not 0 <= numbers[1] <= STRONGEST:
                raise UserError(
                    f"--rand-augment is {_listed(numbers)}; it must be how many operations, from "
                    f"1, and their strength, from 0 to {STRONGEST}, such as 2,9"
                )
            operations, magnitude = numbers
        if cfg.mixup < 0:
            raise UserError(f"--mixup is {cfg.mixup}; it must be 0 (none) or above")
        return Augmentation(str(kind), operations, magnitude, cfg.mixup)

    @classmethod
    def setup_task(
        cls, cfg: ImageClassificationConfig, **kwargs: object
    ) -> "ImageClassificationTask":
        """Return the task."""
        return cls(cfg)

    @classmethod
    def from_checkpoint(
        cls, cfg: ImageClassificationConfig, kept: Mapping[str, object]
    ) -> "ImageClassificationTask":
        """Make the task without its data, for images from elsewhere.

        Args:
            cfg: the task's configuration, of which the data directory is not used.
            kept: what the checkpoint keeps of the task.

        Raises:
            UserError: it keeps too little.
        """
        return cls(cfg, kept)

    def build_model(self, cfg: FairseqDataclass, from_checkpoint: bool = False) -> BaseFairseqModel:
        """Build the model; what its flags leave open is as the data have it.

        Raises:
            UserError: it is for other images, or for fewer classes.
        """
        cfg = copy.deepcopy(cfg)
        own = {
            "image_size": "x".join(map(str, self.image_size)),
            "image_channels": self.description.channels,
            "sentence_class_num": self.num_classes,
        }
        with open_dict(cfg):
            for name, value in own.items():
                if getattr(cfg, name, None) is None:
                    setattr(cfg, name, value)
        if pair(cfg.image_size, "--image-size") != self.image_size:
            raise UserError(
                f"--image-size is {cfg.image_size}, but the images of {self.cfg.data} have "
                f"{own['image_size']} pixels: leave the flag out, or for images that are files "
                "give --crop-size as well"
            )
        if cfg.image_channels != self.description.channels:
            raise UserError(
                f"--image-channels is {cfg.image_channels}, but the images of {self.cfg.data} "
                f"have {self.description.channels}: leave the flag out"
            )
        model = super().build_model(cfg, from_checkpoint)
        self._tokens = getattr(model, "tokens", 1)
        return model

    def load_dataset(self, split: str, combine: bool = False, **kwargs: object) -> None:
        """Load a split: ``train``, ``valid`` or ``test``, or several with ``+`` between them.

        One with ``train`` in it is augmented, and has another order in each epoch.

        Raises:
            UserError: it is not there or damaged, or its labels are no classes.
        """
        training = TRAINING in split.split("+")
        dataset = ImageDataset(
            self.cfg.data,
            split,
            mean=self.mean,
            std=self.std,
            size=self.image_size,
            augmentation=self.augmentation if training else None,
            seed=self.cfg.seed,
            shuffle=training and not self.cfg.no_shuffle,
            tokens=self._tokens,
        )
        if len(dataset.labels) and dataset.labels.max() >= self.num_classes:
            raise UserError(
                f"{self.cfg.data}: split {split} has class {dataset.labels.max()}, but there are "
                f"{self.num_classes} class names: prepare it anew"
            )
        self.note_data(split, dataset.labels, dataset.sizes, dataset.content)
        self.datasets[split] = dataset
        logger.info(f"{split}: {len(dataset):,} images of {self.num_classes} classes")

    def get_batch_iterator(
        self, dataset: FairseqDataset, *args: object, **kwargs: object
    ) -> iterators.EpochBatchIterating:
        """Return an iterator that makes batches, and starts loader workers, anew in each epoch."""
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        batch = kwargs.get("max_sentences") or 1
        if not getattr(dataset, "shuffle", False):
            return iterator

        def batches(dataset: FairseqDataset, epoch: int) -> list[list[int]]:
            dataset.set_epoch(epoch)
            order = dataset.ordered_indices().tolist()
            return [order[k : k + batch] for k in range(0, len(order), batch)]

        iterator.batch_sampler, iterator._frozen_batches = batches, None
        # workers that outlived an epoch would not be told of the next
        iterator.reuse_dataloader = iterator.persistent_workers = False
        return iterator

    def input_state(self) -> dict[str, object]:
        """Return the names of the classes, the normalisation, and what an image's size is."""
        return {
            "classes": list(self.description.classes),
            "pixel_mean": list(self.mean),
            "pixel_std": list(self.std),
            "image_size": list(self.image_size),
            "files": self.files,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Compare the classes with a checkpoint's, and take its normalisation.

        Raises:
            UserError: the classes are others, or the normalisation that was asked for is.
        """
        super().load_state_dict(state_dict)
        if "classes" not in state_dict:
            return
        classes = list(self.description.classes)
        if state_dict["classes"] != classes:
            raise UserError(
                f"the checkpoint was trained on {len(state_dict['classes'])} classes "
                f"({_few(state_dict['classes'])}), but {self.cfg.data} has {len(classes)} "
                f"({_few(classes)}): give the data that it was trained on"
            )
        for name in ("mean", "std"):
            if f"pixel_{name}" not in state_dict:
                continue
            recorded, own = tuple(state_dict[f"pixel_{name}"]), getattr(self, name)
            if self.datasets and recorded != own:
                raise UserError(
                    f"the checkpoint was trained with --pixel-{name} {_listed(recorded)}, this "
                    f"run has {_listed(own)}: give it that flag"
                )
            setattr(self, name, recorded)


def _description(kept: Mapping[str, object]) -> Description:
    """Return what a checkpoint keeps of the description of its data."""
    values = (tuple(kept_value(kept, key)) for key in ("classes", "pixel_mean", "pixel_std"))
    return Description(*values, root="." if kept_value(kept, "files") else None)


def _numbers(flag: str, given: Any, kind: type) -> tuple:
    """Read numbers with commas between them, or a sequence of them."""
    words = str(given).split(",") if isinstance(given, str | int | float) else given
    try:
        return tuple(kind(word) for word in words)
    except ValueError:
        raise UserError(
            f"{flag} is {given}; it must be numbers with commas between them, such as 1,2"
        ) from None


def _listed(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
