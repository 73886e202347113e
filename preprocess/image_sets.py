"""What the preparations of image classification share: trees of class folders, the written form.

The result is what :mod:`fairseq_csp.data.images` reads.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from fairseq_csp.data.files import numbered_lines, read_whole
from fairseq_csp.data.images import FORMATS, Description
from fairseq_csp.datasets import DataSet
from fairseq_csp.errors import UserError
from preprocess.archives import RawRelease
from preprocess.images import read_image
from preprocess.parallel import ordered_map
from preprocess.preparation import prepare, standin_source
from preprocess.sources import require_raw
from preprocess.summary import SPLITS, Figures, SplitFigures

TREE = "{train,valid|val,test}/CLASS/*, PNG or JPEG"
DEMO_COUNTS = {"train": 3000, "valid": 500, "test": 500}
DEMO_CLASSES = [f"{width}-{tilt}" for width in ("narrow", "wide") for tilt in (0, 22, 45, 67, 90)]
VALID_FRACTION = 0.1

_IMAGE = re.compile(
    r"(?:^|/)(?P<pool>train|valid|val|test)/(?P<folder>[^/]+)/(?:images/)?"
    r"(?P<file>[^/]+\.(?:png|jpe?g))$",
    re.IGNORECASE,
)
# the released form of Tiny-ImageNet names the classes of one split in a file
_ANNOTATIONS = re.compile(r"(?:^|/)(valid|val|test)/\1_annotations\.txt$")
_UNSORTED = "images"
_CHUNK = 1 << 10


@dataclass
class Tree:
    """The images of a release by class folder.

    Attributes:
        pools: of each folder at the top (``valid`` for ``val``): name in the release by class
            folder and file name.
    """

    pools: dict[str, dict[tuple[str, str], str]] = field(default_factory=dict)

    def classes(self, where: Path) -> list[str]:
        """Return the names of the classes, sorted.

        Raises:
            UserError: a split lacks one, or has one that train has not.
        """
        by_pool = {pool: {folder for folder, _ in images} for pool, images in self.pools.items()}
        train = by_pool.get("train", set())
        for pool, folders in by_pool.items():
            for missing, here, there in (
                (train - folders, "train", pool),
                (folders - train, pool, "train"),
            ):
                if missing:
                    raise UserError(
                        f"{where}: class folder {min(missing)!r} is in {here} but not in {there} "
                        f"({len(missing):,} such): each split needs all classes"
                    )
        return sorted(train)


def prepare_images(
    data_set: DataSet,
    arguments: argparse.Namespace,
    convert: Callable[..., Figures],
    shape: tuple[int, int, int],
) -> None:
    """Prepare a set whose images all have one size, from its release or as a stand-in.

    Args:
        data_set: Which one.
        arguments: The common options.
        convert: Called with the release, a directory, ``seed``, ``limit`` and ``workers``.
        shape: Height, width and channels of an image.
    """
    options = {"seed": arguments.seed, "limit": arguments.limit}
    if arguments.demo:
        what = "gratings of five tilts and two widths"
        source = standin_source(data_set, arguments, what)
        fill, expected = partial(write_standin, shape=shape, **options), DEMO_COUNTS
    else:
        release = RawRelease(require_raw(data_set, arguments))
        source, expected = release.description, data_set.counts
        fill = partial(convert, release, workers=arguments.workers, **options)
    prepare(data_set, arguments, fill, expected=expected, source=source, options=options)


def hold_out(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training and of the validation images, a tenth of all."""
    order = np.random.default_rng(seed).permutation(images)
    train = round(images * (1 - VALID_FRACTION))
    return order[:train], order[train:]


def keep(images: int, limit: int | None, seed: int) -> np.ndarray:
    """Return the indices of the images that ``--limit`` keeps, in their order.

    They are drawn at random: many releases are sorted by class.
    """
    if limit is None or limit >= images:
        return np.arange(images)
    return np.sort(np.random.default_rng(seed).choice(images, limit, replace=False))


class ImageSetWriter:
    """Memory maps of all splits, filled in any order.

    Args:
        directory: An empty directory.
        counts: Images of each split.
        shape: Height, width and channels of an image.

    Attributes:
        images: uint8 (images, height, width, channels) by split.
        labels: int64 (images,) by split.
    """

    def __init__(
        self, directory: Path, counts: Mapping[str, int], shape: tuple[int, int, int]
    ) -> None:
        self._directory = directory
        self._shape = shape
        for kind in ("input", "label"):
            (directory / kind).mkdir()
        for split, count in counts.items():
            if not count:
                raise UserError(f"found no image for the {split} split")
        self.images = {
            split: np.lib.format.open_memmap(
                directory / "input" / f"{split}.npy", "w+", np.uint8, (count, *shape)
            )
            for split, count in counts.items()
        }
        self.labels = {split: np.zeros(count, np.int64) for split, count in counts.items()}

    def finish(self, classes: Sequence[str]) -> Figures:
        """Write labels and description, and return the figures."""
        for images in self.images.values():
            images.flush()
        mean, std = _statistics(self.images["train"])
        Description(tuple(classes), mean, std).write(self._directory)
        pixels = self._shape[0] * self._shape[1]
        lengths = {split: np.full(len(labels), pixels) for split, labels in self.labels.items()}
        return write_labels(self._directory, self.labels, lengths, classes)


def write_labels(
    directory: Path,
    labels: Mapping[str, np.ndarray],
    lengths: Mapping[str, np.ndarray],
    classes: Sequence[str],
) -> Figures:
    """Write the labels of all splits, and return the figures; ``lengths`` are pixels an image."""
    figures = {}
    for split in SPLITS:
        np.save(directory / "label" / f"{split}.npy", labels[split])
        figures[split] = SplitFigures.of({"input": lengths[split]}, labels[split], list(classes))
    return Figures(figures)


def _statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel in [0, 1], to 5 digits."""
    total, squares = np.zeros(images.shape[3]), np.zeros(images.shape[3])
    for first in range(0, len(images), _CHUNK):
        part = images[first : first + _CHUNK].astype(np.float64) / 255
        total += part.sum((0, 1, 2))
        squares += np.square(part).sum((0, 1, 2))
    pixels = images[..., 0].size
    mean = total / pixels
    # an image set of one colour has a deviation of 0, by which nothing can be divided
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1e-6))
    return tuple(mean.round(5).tolist()), tuple(std.round(5).tolist())


def find_tree(release: RawRelease, pools: Sequence[str]) -> Tree:
    """Find the images of a release.

    Args:
        release: The release.
        pools: Which folders at the top belong to the set; ``val`` counts as ``valid``.

    Raises:
        NothingFoundError: there are none.
        UserError: the train folder is missing, or what :class:`RawRelease` raises.
    """
    tree = Tree()
    annotated: dict[str, dict[str, str]] = {}

    def part(name: str) -> str | None:
        if match := _ANNOTATIONS.search(name):
            return match[0].strip("/") if _pool(match[1]) in pools else None
        match = _IMAGE.search(name)
        return match[0].strip("/") if match and _pool(match["pool"]) in pools else None

    for name, file in release.files(part, f"{TREE} images"):
        if match := _ANNOTATIONS.search(name):
            words = annotated.setdefault(_pool(match[1]), {})
            for number, line in numbered_lines(file, release.where(name)):
                columns = line.decode(errors="replace").split("\t")
                if len(columns) < 2:
                    raise UserError(
                        f"{release.where(name)}, line {number}: expected a file name and a class "
                        "with a tab between them"
                    )
                words[columns[0]] = columns[1]
            continue
        match = _IMAGE.search(name)
        tree.pools.setdefault(_pool(match["pool"]), {})[match["folder"], match["file"]] = name
    if "train" not in tree.pools:
        raise UserError(f"{release.path} has no folder train/CLASS with images in it")
    for pool, words in annotated.items():
        images = tree.pools.get(pool, {})
        if {folder for folder, _ in images} != {_UNSORTED}:
            continue
        for _, file in images:
            if file not in words:
                raise UserError(f"{release.path}: {pool}_annotations.txt does not name {file}")
        tree.pools[pool] = {(words[file], file): name for (_, file), name in images.items()}
    return tree


def _pool(folder: str) -> str:
    folder = folder.lower()
    return "valid" if folder == "val" else folder


def check_classes(found: Sequence[str], expected: int, release: RawRelease, limited: bool) -> None:
    """Compare the number of class folders with what it must be; not where the set is limited.

    Raises:
        UserError: it is another.
    """
    if len(found) != expected and not limited:
        raise UserError(
            f"{release.path} has {len(found)} class folders, expected {expected}; the raw data is "
            "incomplete or another release (--limit N prepares what there is)"
        )


def split_tree(tree: Tree, seed: int, limit: int | None = None) -> dict[str, list[tuple[str, str]]]:
    """Divide the images of a tree: (class folder, name in the release) by split.

    A folder ``valid`` is the validation split where there is ``test`` as well; alone it is the
    test split, as the sets that have no other test labels are used. Where there is no validation
    split, a tenth of the training images becomes one.

    Args:
        tree: The tree.
        seed: Of that choice, and of the images that are kept.
        limit: How many of a split are kept.

    Raises:
        UserError: there is nothing to test on.
    """
    pools = {
        pool: [(folder, name) for (folder, _), name in sorted(images.items())]
        for pool, images in tree.pools.items()
    }
    if "test" not in pools and "valid" in pools:
        pools["test"] = pools.pop("valid")
    if "test" not in pools:
        raise UserError("there is neither a folder valid or val nor a folder test to test on")
    if "valid" not in pools:
        train, valid = hold_out(len(pools["train"]), seed)
        images = pools["train"]
        pools["train"], pools["valid"] = ([images[k] for k in part] for part in (train, valid))
    return {
        split: [pools[split][index] for index in keep(len(pools[split]), limit, seed)]
        for split in SPLITS
    }


def write_tree(
    release: RawRelease,
    directory: Path,
    splits: Mapping[str, Sequence[tuple[str, str]]],
    classes: Sequence[str],
    shape: tuple[int, int, int],
    *,
    workers: int,
) -> Figures:
    """Decode the images of a tree and write them.

    Args:
        release: The release.
        directory: An empty directory.
        splits: Class folder and name of each image.
        classes: Names of the class folders in the order of the labels.
        shape: Height, width and channels of an image; grey ones among colours are taken as such.
        workers: Processes that decode.

    Raises:
        UserError: an image is damaged or of another size.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    writer = ImageSetWriter(
        directory, {split: len(images) for split, images in splits.items()}, shape
    )
    places = {}
    for split, images in splits.items():
        for place, (folder, name) in enumerate(images):
            places[name] = (split, place)
            writer.labels[split][place] = numbers[folder]

    def contents() -> Iterator[tuple[str, str, bytes]]:
        for name, file in release.files(lambda name: name if name in places else None, "images"):
            where = release.where(name)
            yield name, where, read_whole(file, where)

    for name, pixels in ordered_map(partial(_decode, shape), contents(), workers):
        split, place = places[name]
        writer.images[split][place] = pixels
    return writer.finish(classes)


def _decode(shape: tuple[int, int, int], named: tuple[str, str, bytes]) -> tuple[str, np.ndarray]:
    name, where, content = named
    return name, decode(io.BytesIO(content), where, shape)


def decode(file: BinaryIO, where: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Decode an image, uint8 (height, width, channels).

    Args:
        file: its content.
        where: how to call it in a message.
        shape: height, width and channels that it must have; a grey one among colours is taken as
            such.

    Raises:
        UserError: it is damaged or of another size.
    """
    image = read_image(file, where, formats=FORMATS)
    if image.size != (shape[1], shape[0]):
        raise UserError(
            f"{where} has {image.width} x {image.height} pixels, expected {shape[1]} x {shape[0]}"
        )
    return np.asarray(image.convert("L" if shape[2] == 1 else "RGB")).reshape(shape)


def gratings(
    labels: np.ndarray, shape: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """Return noisy gratings, uint8 (images, height, width, channels).

    Args:
        labels: (images,) of 0 to 9: five tilts to either side, which a flip does not change, then
            the same twice as wide.
        shape: Height, width and channels.
        rng: Where phase, colour and noise come from.
    """
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    side = rng.choice([-1, 1], labels.size)
    angle = side * (labels % 5) * np.pi / 8 + rng.normal(0, 0.06, labels.size)
    period = np.where(labels < 5, 5.0, 10.0) * rng.uniform(0.9, 1.1, labels.size)
    phase = rng.uniform(0, 2 * np.pi, labels.size)
    distance = np.cos(angle)[:, None, None] * columns + np.sin(angle)[:, None, None] * rows
    waves = np.sin(2 * np.pi * distance / period[:, None, None] + phase[:, None, None])
    tint = rng.uniform(0.4, 1, (labels.size, 1, 1, shape[2]))
    noisy = 128 + 70 * waves[..., None] * tint + rng.normal(0, 30, (labels.size, *shape))
    return noisy.clip(0, 255).astype(np.uint8)


def write_standin(
    directory: Path, *, shape: tuple[int, int, int], seed: int, limit: int | None = None
) -> Figures:
    """Write gratings whose direction and width make the class."""
    rng = np.random.default_rng(seed)
    counts = {split: min(count, limit or count) for split, count in DEMO_COUNTS.items()}
    writer = ImageSetWriter(directory, counts, shape)
    for split, labels in writer.labels.items():
        labels[:] = rng.integers(0, len(DEMO_CLASSES), labels.size)
        for first in range(0, len(labels), _CHUNK):
            part = slice(first, first + _CHUNK)
            writer.images[split][part] = gratings(labels[part], shape, rng)
    return writer.finish(DEMO_CLASSES)


def save_standin_files(
    directory: Path, sizes: Sequence[tuple[int, int]], *, images: int, seed: int
) -> None:
    """Save gratings as JPEG files ``directory/CLASS/N.jpg``, of the sizes in turn."""
    rng = np.random.default_rng(seed)
    for number in range(images):
        label = number % len(DEMO_CLASSES)
        (pixels,) = gratings(np.array([label]), (*sizes[number % len(sizes)], 3), rng)
        path = directory / DEMO_CLASSES[label] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
