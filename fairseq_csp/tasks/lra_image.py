"""LRA's image tasks: CIFAR-10, Pathfinder and Path-X, as sequences of real-valued pixels."""

import logging
import math
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Optional

from fairseq.tasks import register_task

from fairseq_csp.data.pixels import PixelDataset, load_labels, pixels_of_an_image
from fairseq_csp.errors import UserError
from fairseq_csp.tasks.lra import LRATask, LRATaskConfig, kept_value

logger = logging.getLogger(__name__)

NORMALIZATION = (0.5, 0.5)
NORMALIZATION_HELP = "mean and standard deviation of the pixels in [0, 1] (default: 0.5 0.5)"


@dataclass
class LRAImageConfig(LRATaskConfig):
    """Flags of the task; those that the model has as well take the model's value."""

    pixel_normalization: Optional[list[float]] = field(  # noqa: UP045 (fairseq reads it)
        default=None,
        metadata={"help": NORMALIZATION_HELP},
    )
    max_positions: int = field(default=1024, metadata={"help": "most pixels of an image"})
    chunk_size: int = field(default=-1, metadata={"help": "must divide the number of pixels"})


@register_task("lra-image", dataclass=LRAImageConfig)
class LRAImageTask(LRATask):
    """Classify images; see :mod:`fairseq_csp.data.pixels` for what the directory holds.

    Args:
        cfg: the task's configuration.
        kept: what a checkpoint keeps of the task, in the place of the data directory.

    Raises:
        UserError: the normalisation is not a mean and a positive standard deviation.
    """

    def __init__(self, cfg: LRAImageConfig, kept: Mapping[str, object] | None = None) -> None:
        super().__init__(cfg, kept)
        self._pixels = None if kept is None else kept_value(kept, "pixels")
        normalization = tuple(cfg.pixel_normalization or NORMALIZATION)
        finite = all(map(math.isfinite, normalization))
        if len(normalization) != 2 or not finite or not normalization[1] > 0:
            raise UserError(
                f"--pixel-normalization is {normalization}; it must be a finite mean and positive "
                f"standard deviation, such as {NORMALIZATION[0]} {NORMALIZATION[1]}"
            )
        self.mean, self.std = normalization

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Add the flags; as published, the pixel normalisation is two words."""
        parser.add_argument(
            "--pixel-normalization",
            type=float,
            nargs=2,
            metavar=("MEAN", "STD"),
            help=NORMALIZATION_HELP,
        )
        super().add_args(parser)

    @classmethod
    def setup_task(cls, cfg: LRAImageConfig, **kwargs: object) -> "LRAImageTask":
        """Return the task."""
        return cls(cfg)

    @classmethod
    def from_checkpoint(cls, cfg: LRAImageConfig, kept: Mapping[str, object]) -> "LRAImageTask":
        """Make the task without its data, for images from elsewhere.

        Args:
            cfg: the task's configuration, of which the data directory is not used.
            kept: what the checkpoint keeps of the task.

        Raises:
            UserError: it keeps too little.
        """
        return cls(cfg, kept)

    def input_state(self) -> dict[str, object]:
        """Return the pixels of an image.

        Raises:
            UserError: the data are damaged.
        """
        # not all splits are everywhere
        for split in ("train", "valid", "test"):
            self._pixels = self._pixels or pixels_of_an_image(self.cfg.data, split)
        return {"pixels": self._pixels}

    def load_dataset(self, split: str, combine: bool = False, **kwargs: object) -> None:
        """Load a split: ``train``, ``valid`` or ``test``.

        Raises:
            UserError: it is not there or damaged, or the flags do not fit its images or labels.
        """
        images = PixelDataset(self.cfg.data, split, mean=self.mean, std=self.std)
        self._pixels = pixels = int(images.sizes[0])
        if pixels > self.cfg.max_positions:
            raise UserError(
                f"{self.cfg.data}: an image has {pixels:,} pixels, more than --max-positions "
                f"{self.cfg.max_positions}: is the architecture one for this data set?"
            )
        if 0 < self.cfg.chunk_size < pixels and pixels % self.cfg.chunk_size:
            raise UserError(
                f"{self.cfg.data}: --chunk-size {self.cfg.chunk_size} does not divide the "
                f"{pixels:,} pixels of an image"
            )
        of_train = pixels_of_an_image(self.cfg.data, "train")
        if of_train is not None and pixels != of_train:
            raise UserError(
                f"{self.cfg.data}: images of split {split} have {pixels:,} pixels, those of train "
                f"{of_train:,}: they are of different data sets"
            )
        labels = load_labels(self.cfg.data, split, len(images))
        net_input = {"src_tokens": images}
        self.datasets[split] = self.assemble(split, net_input, labels, images.sizes, images)
        logger.info(f"{split}: {len(images):,} images of {pixels:,} pixels")
