"""Images with their classes: pixels read one image at a time, or files decoded while loading.

A prepared set is a directory of::

    input/{train,valid,test}.npy    uint8 (images, height, width, channels), or paths below `root`
    label/{train,valid,test}.npy    int64 (images,)
    images.json                     class names, mean and deviation of each channel, root

``train+valid`` names both splits, one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from fairseq.data import FairseqDataset
from PIL import Image
from torch import Tensor

from fairseq_csp.data.augmentation import Augmentation, centre_crop
from fairseq_csp.data.pixels import ArrayFile, load_labels
from fairseq_csp.errors import UserError

DESCRIPTION = "images.json"
FORMATS = ("PNG", "JPEG")
# more than any photograph has, fewer than would fill the memory
MOST_PIXELS = 1 << 28


@dataclass(frozen=True)
class Description:
    """What is true of all images of a set.

    Attributes:
        classes: name of each class.
        mean: of each channel, in [0, 1].
        std: of each channel.
        root: directory of the files, by itself or in that of the set; None where the pixels are in
            the set itself.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    root: str | None = None

    @property
    def channels(self) -> int:
        """Channels of an image: 1 (grey) or 3."""
        return len(self.mean)

    def write(self, directory: Path) -> None:
        """Write it into a prepared set."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        (directory / DESCRIPTION).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, directory: str | Path) -> Description:
        """Read that of a prepared set.

        Raises:
            UserError: it is not there, or damaged.
        """
        path = Path(directory) / DESCRIPTION
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            root = content["root"]
            described = cls(
                tuple(map(str, content["classes"])),
                tuple(map(float, content["mean"])),
                tuple(map(float, content["std"])),
                None if root is None else str(root),
            )
            channels = {len(described.mean), len(described.std)}
            if not described.classes or channels not in ({1}, {3}):
                raise ValueError("no classes, or not one or three channels")
        except FileNotFoundError:
            raise UserError(
                f"{path} is not there: is {directory} the prepared data of an image "
                "classification? `python -m preprocess --help` tells how to prepare it"
            ) from None
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}): prepare the data anew") from error
        return described


def read_image(file: object, where: str, channels: int) -> Image.Image:
    """Decode a PNG or JPEG image.

    Args:
        file: a path or an open binary file.
        where: how to call it in a message.
        channels: 1 for grey, 3 for colours; a grey image among colours has three equal channels.

    Raises:
        UserError: it is not there, damaged, of another format, or too large.
    """
    try:
        # of the other formats that PIL reads, one starts another program
        image = Image.open(file, formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        return image.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # a damaged image can fail in any way
        raise UserError(
            f"{where} is not a whole {' or '.join(FORMATS)} image ({error}): replace it, or take "
            "it out of the data"
        ) from error


def normalised(images: Sequence[np.ndarray], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return images as a model takes them, float32 (images, channels, height, width).

    Args:
        images: each uint8 (height, width, channels).
        mean: of each channel, taken from the pixels in [0, 1].
        std: what they are divided by then.
    """
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (
        pixels.to(torch.float32, memory_format=torch.contiguous_format)
        .div_(255)
        .sub_(mean)
        .div_(std)
    )


class ImageDataset(FairseqDataset):
    """Images of a split and their classes, normalised.

    An item is a function of the seed, the epoch and its index alone.

    Args:
        directory: a prepared set.
        split: ``train``, ``valid`` or ``test``, or several with ``+`` between them.
        mean: of each channel, taken from the pixels in [0, 1].
        std: what they are divided by then.
        size: height and width that files are brought to.
        augmentation: applied to the images of an epoch; None for none.
        seed: of augmentation and order.
        shuffle: whether each epoch has an order of its own.
        tokens: tokens of an image, to count.

    Raises:
        UserError: the split is not there or damaged.
    """

    def __init__(
        self,
        directory: str | Path,
        split: str,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int],
        augmentation: Augmentation | None = None,
        seed: int = 0,
        shuffle: bool = False,
        tokens: int = 1,
    ) -> None:
        self.directory = Path(directory)
        self.splits = split.split("+")
        self.description = Description.read(directory)
        self.mean = mean
        self.std = std
        self.size_of_image = size
        self.augmentation = augmentation
        self.seed = seed
        self.shuffle = shuffle
        self.tokens = tokens
        self.epoch = 1
        self._open()
        self.starts = np.cumsum([0, *map(len, self._images)])
        self.labels = np.concatenate(
            [
                load_labels(directory, name, len(images))
                for name, images in zip(self.splits, self._images, strict=True)
            ]
        )
        self.sizes = np.full(len(self.labels), tokens, dtype=np.int64)

    def _open(self) -> None:
        self._images = [open_images(self.directory, split) for split in self.splits]
        expected = (*self.size_of_image, self.description.channels)
        for split, images in zip(self.splits, self._images, strict=True):
            if images.ndim == 4 and images.shape[1:] != expected:
                height, width, channels = images.shape[1:]
                raise UserError(
                    f"{self.directory}: an image of split {split} is of {height}x{width} pixels "
                    f"and has {channels} channel(s), expected "
                    f"{expected[0]}x{expected[1]} and {expected[2]}: prepare it anew"
                )

    def __getstate__(self) -> dict[str, object]:
        # the receiver opens the files again
        return {key: value for key, value in self.__dict__.items() if key != "_images"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, object]:
        item = {"id": index, "image": self._view(index), "class": int(self.labels[index])}
        if self.augmentation and self.augmentation.mixup:
            # a stream of its own, so that mixup leaves the crops as they are
            rng = np.random.default_rng((self.seed, self.epoch, index, 1))
            other = int(rng.integers(len(self)))
            item["other image"] = self._view(other)
            item["other class"] = int(self.labels[other])
            item["weight"] = rng.beta(self.augmentation.mixup, self.augmentation.mixup)
        return item

    def _stored(self, index: int) -> np.ndarray | bytes:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self._images[part][index - self.starts[part]]

    def content(self, index: int) -> bytes:
        """Return the pixels of an image as they are stored; of a file its path."""
        stored = self._stored(index)
        return stored if isinstance(stored, bytes) else np.ascontiguousarray(stored).tobytes()

    def _view(self, index: int) -> np.ndarray:
        """Return an image as this epoch has it, uint8 (height, width, channels)."""
        image = self._stored(index)
        if isinstance(image, bytes):
            path = self.directory / self.description.root / image.decode()
            image = read_image(path, str(path), self.description.channels)
            if self.augmentation is None:
                return centre_crop(image, self.size_of_image)
        elif self.augmentation is None:
            return image
        rng = np.random.default_rng((self.seed, self.epoch, index))
        return self.augmentation(image, self.size_of_image, rng)

    def collater(self, samples: list[dict]) -> dict:
        """Return a batch: images float32 (batch, channels, height, width), classes and counts."""
        if not samples:
            return {}
        images = normalised([sample["image"] for sample in samples], self.mean, self.std)
        batch = {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "target": torch.tensor([sample["class"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": len(samples) * self.tokens,
        }
        if "weight" in samples[0]:
            others = normalised([sample["other image"] for sample in samples], self.mean, self.std)
            weights = torch.tensor([sample["weight"] for sample in samples], dtype=torch.float32)
            images = torch.lerp(others, images, weights.view(-1, 1, 1, 1))
            batch["other_target"] = torch.tensor([sample["other class"] for sample in samples])
            batch["weight"] = weights
        return batch | {"net_input": {"images": images}}

    def set_epoch(self, epoch: int) -> None:
        """Take the augmentation and the order of an epoch, from 1."""
        self.epoch = epoch

    def ordered_indices(self) -> np.ndarray:
        """Return the order of the epoch, int64 (images,)."""
        if not self.shuffle:
            return np.arange(len(self))
        return np.random.default_rng((self.seed, self.epoch)).permutation(len(self))

    def num_tokens(self, index: int) -> int:
        """Return the tokens of an image."""
        return self.tokens

    def size(self, index: int) -> int:
        """Return the tokens of an image."""
        return self.tokens


def open_images(directory: str | Path, split: str) -> ArrayFile:
    """Open a split: uint8 (images, height, width, channels), or bytes (images,) of paths.

    Raises:
        UserError: it is not there, damaged or empty.
    """
    path = Path(directory) / "input" / f"{split}.npy"
    if not path.is_file():
        raise UserError(
            f"{path} is not there: is {directory} the prepared data of an image classification, "
            f"and {split} one of its splits?"
        )
    array = ArrayFile(path)
    pixels = array.dtype == np.uint8 and array.ndim == 4
    if not pixels and not (array.dtype.kind == "S" and array.ndim == 1):
        raise UserError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected uint8 of (images, "
            "height, width, channels), or paths"
        )
    if not array.size:
        raise UserError(f"{path} holds no images")
    return array
