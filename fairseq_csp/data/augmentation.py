"""Random changes of images: crops, flips and RandAugment, drawn from a generator that is given.

RandAugment (arXiv 1909.13719) is written here with PIL: torchvision's plain wheel loads only beside
the torch build it was compiled for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

CROP, RESIZED_CROP, NONE = "crop", "resized-crop", "none"
# zero pixels that are put around an image before it is cropped to its own size
PADDING = 4
# of the part of a large image that is taken: its share of the area, and width by height
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
TRIES = 10
# the shorter side of an image, by that of the centre that is tested
TEST_RATIO = 8 / 7
# RandAugment's strengths go from 0 to this
STRONGEST = 10


@dataclass(frozen=True)
class Augmentation:
    """What is done to the images of an epoch.

    Attributes:
        kind: ``crop`` (to the image's size, out of 4 zero pixels around it) or ``resized-crop``,
            each with a flip in half of the cases; or ``none``.
        operations: how many of RandAugment's operations an image undergoes.
        magnitude: their strength, from 0 to 10.
        mixup: of two images; the parameter of the weights' beta distribution (arXiv 1710.09412).
    """

    kind: str
    operations: int = 0
    magnitude: int = 0
    mixup: float = 0.0

    def __call__(
        self, image: np.ndarray | Image.Image, size: tuple[int, int], rng: np.random.Generator
    ) -> np.ndarray:
        """Change an image.

        Args:
            image: uint8 (height, width, channels), or a decoded file.
            size: height and width of a decoded file's result.
            rng: where chance comes from.

        Returns:
            uint8 (height, width, channels).
        """
        if self.kind == RESIZED_CROP:
            image = resized_crop(
                image if isinstance(image, Image.Image) else as_pil(image), size, rng
            )
        elif isinstance(image, Image.Image):
            image = centre_crop(image, size)
        if self.kind == CROP:
            image = padded_crop(image, rng)
        if self.kind != NONE and rng.random() < 0.5:
            image = image[:, ::-1]
        if self.operations:
            image = rand_augment(image, self.operations, self.magnitude, rng)
        return image


def padded_crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move an image by up to 4 pixels each way; zeros come in.

    Args:
        image: uint8 (height, width, channels).
        rng: where the two shifts come from, each of -4 to 4.

    Returns:
        The same shape.
    """
    height, width, _ = image.shape
    padded = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    top, left = rng.integers(0, 2 * PADDING + 1, 2)
    return padded[top : top + height, left : left + width]


def resized_crop(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Take a random part of an image and resize it (arXiv 1409.4842, section 6).

    Args:
        image: of any size.
        size: height and width of the result.
        rng: where the part's area, shape and place come from.

    Returns:
        uint8 (height, width, channels).
    """
    for _ in range(TRIES):
        area = image.width * image.height * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= image.width and 0 < height <= image.height:
            left = int(rng.integers(image.width - width + 1))
            top = int(rng.integers(image.height - height + 1))
            box = (left, top, left + width, top + height)
            return _resized(image, size, box)
    return centre_crop(image, size, 1.0)


def centre_crop(image: Image.Image, size: tuple[int, int], ratio: float = TEST_RATIO) -> np.ndarray:
    """Resize an image and take its centre.

    Args:
        image: of any size.
        size: height and width of the result.
        ratio: how many times as large the resized image is, where its shape is that of the centre.

    Returns:
        uint8 (height, width, channels).
    """
    scale = min(image.height / size[0], image.width / size[1]) / ratio
    height, width = size[0] * scale, size[1] * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return _resized(image, size, (left, top, left + width, top + height))


def _resized(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
) -> np.ndarray:
    resized = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    return as_array(resized)


def as_array(image: Image.Image) -> np.ndarray:
    """Return uint8 (height, width, channels)."""
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def as_pil(image: np.ndarray) -> Image.Image:
    """Return an image of uint8 (height, width, 1 or 3)."""
    return Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))


def rand_augment(
    image: np.ndarray, operations: int, magnitude: int, rng: np.random.Generator
) -> np.ndarray:
    """Apply operations that are drawn at random, all with one strength (arXiv 1909.13719).

    Args:
        image: uint8 (height, width, channels).
        operations: how many.
        magnitude: from 0 to 10.
        rng: where the choice, and the direction of those that have two, comes from.

    Returns:
        The same shape.
    """
    changed = as_pil(image)
    names = list(OPERATIONS)
    for number in rng.integers(len(names), size=operations):
        strength = magnitude / STRONGEST
        sign = 1 if rng.random() < 0.5 else -1
        changed = OPERATIONS[names[number]](changed, strength, sign)
    return as_array(changed)


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _enhancer(kind: type) -> Callable[[Image.Image, float, int], Image.Image]:
    # as strong as makes 0.1 or 1.9 of the image's own
    return lambda image, strength, sign: kind(image).enhance(1 + sign * 0.9 * strength)


def _bits(image: Image.Image, strength: float) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(4 * strength))


# the fourteen of the paper: each takes an image, a strength from 0 to 1, and 1 or -1
OPERATIONS: dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "identity": lambda image, strength, sign: image,
    "autocontrast": lambda image, strength, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, sign: ImageOps.equalize(image),
    "rotate": lambda image, strength, sign: image.rotate(sign * 30 * strength),
    "solarize": lambda image, strength, sign: ImageOps.solarize(image, round(256 * (1 - strength))),
    "color": _enhancer(ImageEnhance.Color),
    "posterize": lambda image, strength, sign: _bits(image, strength),
    "contrast": _enhancer(ImageEnhance.Contrast),
    "brightness": _enhancer(ImageEnhance.Brightness),
    "sharpness": _enhancer(ImageEnhance.Sharpness),
    "shear-x": lambda image, strength, sign: _affine(image, (1, sign * 0.3 * strength, 0, 0, 1, 0)),
    "shear-y": lambda image, strength, sign: _affine(image, (1, 0, 0, sign * 0.3 * strength, 1, 0)),
    "translate-x": lambda image, strength, sign: _affine(
        image, (1, 0, sign * 0.3 * strength * image.width, 0, 1, 0)
    ),
    "translate-y": lambda image, strength, sign: _affine(
        image, (1, 0, 0, 0, 1, sign * 0.3 * strength * image.height)
    ),
}
