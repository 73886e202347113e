"""Pathfinder, 32 x 32 pixels: two discs, joined by a dashed contour (1) or not (0).

    python -m preprocess pathfinder --generate              generate 160,000/20,000/20,000 images
    python -m preprocess pathfinder --raw lra_release.gz    read the release (archive or directory)
    python -m preprocess pathfinder --preview sheet.png     only draw 200 images to look at
    python -m preprocess pathfinder --demo                  a small set that a small model can learn
    python -m preprocess pathfinder --level easy --out DIR  an easier level, to begin training with

Without `--raw` and `--generate` the release is read where it lies in `lra_data/raw/`, else images
are generated. Writes `input/*.npy` and `label/*.npy`.

The levels differ in the paddles of the long contours: 14 (hard, the task of the Long Range Arena),
9 (intermediate) and 6 (easy). Of the release one level is read, for the hard one the folder
`pathfinder32/curv_contour_length_14/`: images `imgs/K/sample_I.png` and, despite their name, text
files `metadata/K.npy` with one image a line (folder, file, id, label, ...). Images stand in the
order of the metadata, K by number, and are split 80/10/10 by a permutation that `--seed` chooses.
The generator is described in `pathfinder_generator.py`; the same seed gives the same files on any
number of workers.
"""

from __future__ import annotations

import argparse
import io
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

from fairseq_csp.data.files import numbered_lines, read_whole
from fairseq_csp.datasets import DATASETS, DataSet
from fairseq_csp.errors import UserError
from preprocess.archives import RawRelease
from preprocess.image_format import ImageDatasetWriter
from preprocess.images import largest_file, read_image, to_grey
from preprocess.parallel import ordered_map
from preprocess.pathfinder_generator import Settings, generate
from preprocess.preparation import add_common_arguments, prepare, standin_source
from preprocess.progress import progress
from preprocess.sources import find_raw
from preprocess.summary import SPLITS, Figures

PREVIEW_IMAGES = 200

# folder of the release, and paddles of a long contour
_LEVELS = {
    "easy": ("curv_baseline", 6),
    "intermediate": ("curv_contour_length_9", 9),
    "hard": ("curv_contour_length_14", Settings.paddles),
}
# of the release, empty: (folder of the size, folder of the level, image)
_KNOWN_DAMAGED = {("pathfinder32", "curv_baseline", "imgs/0/sample_172.png")}
_CHUNK = 256  # images decoded at a time
_PREVIEW_COLUMNS = 20

Item = TypeVar("Item")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """One of the two image sizes.

    Attributes:
        data_set: Its name and counts.
        folder: The folder of the release.
        settings: The geometry of generated images.
        demo: The same for the stand-in.
        demo_counts: Images of the stand-in.
    """

    data_set: DataSet
    folder: str
    settings: Settings
    demo: Settings
    demo_counts: dict[str, int]


PATHFINDER = Variant(
    DATASETS["pathfinder"],
    "pathfinder32",
    Settings(),
    demo=Settings(paddles=8, distractors=3, easy=True),
    demo_counts={"train": 2000, "valid": 400, "test": 400},
)


def add_arguments(parser: argparse.ArgumentParser, variant: Variant = PATHFINDER) -> None:
    """Add the options of this data set."""
    add_common_arguments(parser, variant.data_set)
    parser.add_argument("--generate", action="store_true", help="generate the images")
    parser.add_argument(
        "--level", choices=_LEVELS, help="of the release or of generated images (default: hard)"
    )
    parser.add_argument(
        "--preview",
        type=Path,
        metavar="PNG",
        help=f"draw {PREVIEW_IMAGES} images, positives above negatives, and prepare nothing",
    )


def run(arguments: argparse.Namespace, variant: Variant = PATHFINDER) -> None:
    """Prepare the set from its raw release, or generate it, or draw a preview."""
    if arguments.raw and (arguments.generate or arguments.demo):
        flag = "generate" if arguments.generate else "demo"
        raise UserError(f"--{flag} and --raw exclude each other")
    if arguments.demo and arguments.level:
        raise UserError("--demo has a level of its own: leave --level out")
    level = arguments.level or "hard"
    folder, paddles = _LEVELS[level]
    settings = variant.demo if arguments.demo else replace(variant.settings, paddles=paddles)
    if arguments.preview:
        _write_preview(settings, arguments)
        return

    data_set = variant.data_set
    expected = data_set.counts
    options: dict[str, object] = {"seed": arguments.seed, "limit": arguments.limit}
    raw = arguments.raw
    if raw is None and not arguments.generate and not arguments.demo:
        raw = find_raw(data_set)
    if raw:
        options["level"] = level
        release = RawRelease(raw)
        source = release.description
        fill = partial(_convert_release, release, variant, folder, arguments)
    else:
        source = partial(dict, generator="pathfinder", seed=arguments.seed)
        options |= asdict(settings)
        if arguments.demo:
            source = standin_source(
                data_set, arguments, "where the label is 0 the long contours are left out"
            )
            expected = variant.demo_counts
        if arguments.limit:
            expected = {split: min(count, arguments.limit) for split, count in expected.items()}
        fill = partial(_generate_splits, settings, expected, arguments)
    prepare(data_set, arguments, fill, expected=expected, source=source, options=options)


def _generate_splits(
    settings: Settings, counts: Mapping[str, int], arguments: argparse.Namespace, directory: Path
) -> Figures:
    total = sum(counts.values())
    chunks = generate(settings, seed=arguments.seed, count=total, workers=arguments.workers)
    images = (pair for images, labels in chunks for pair in zip(images, labels, strict=True))
    splits = (split for split, count in counts.items() for _ in range(count))
    with ImageDatasetWriter(directory, pixels=settings.side**2) as writer:
        shown = progress(images, "generating", total=total, unit=" images")
        for split, (image, label) in zip(splits, shown, strict=True):
            writer.add(split, image, [label])
        return writer.finish(classes=2)


def _write_preview(settings: Settings, arguments: argparse.Namespace) -> None:
    chunks = generate(
        settings, seed=arguments.seed, count=PREVIEW_IMAGES, workers=arguments.workers
    )
    images, labels = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    ordered = images[np.argsort(-labels, kind="stable")].reshape(-1, settings.side, settings.side)
    framed = np.pad(ordered, ((0, 0), (1, 1), (1, 1)), constant_values=96)
    rows = [np.hstack(row) for row in np.split(framed, PREVIEW_IMAGES // _PREVIEW_COLUMNS)]
    sheet = Image.fromarray(np.vstack(rows))
    zoom = max(1, 96 // settings.side)
    size = (sheet.width * zoom, sheet.height * zoom)
    sheet.resize(size, Image.Resampling.NEAREST).save(arguments.preview, format="PNG")
    logger.info(
        "wrote %s: %d images with label 1, and below them as many with label 0",
        arguments.preview,
        PREVIEW_IMAGES // 2,
    )


@dataclass
class _Level:
    """What was found under one folder of the right name.

    Attributes:
        spool: File that the images are appended to, in the order they are met.
        positions: The index of each image in it, by its path in the folder.
        metadata: Name and text of each metadata file, by its number.
        damaged: Images left out, which are known to be damaged in the release.
    """

    spool: BinaryIO
    positions: dict[str, int] = field(default_factory=dict)
    metadata: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)


def _convert_release(
    release: RawRelease,
    variant: Variant,
    folder: str,
    arguments: argparse.Namespace,
    directory: Path,
) -> Figures:
    """Read the images of the release once, into a spool file, then write them split.

    Raises:
        UserError: images or metadata are missing, damaged, or do not belong together.
    """
    side = variant.settings.side
    with _read_level(release, variant, folder, arguments.workers, directory) as level:
        positions, labels = _in_order_of_metadata(level)
        images = np.memmap(level.spool, np.uint8, "r", shape=(len(level.positions), side * side))
        order = np.random.default_rng(arguments.seed).permutation(len(labels))
        train, valid = (int(len(labels) * share) for share in (0.8, 0.9))
        parts = dict(zip(SPLITS, np.split(order, (train, valid)), strict=True))
        with ImageDatasetWriter(directory, pixels=side * side) as writer:
            for split, numbers in parts.items():
                numbers = numbers[: arguments.limit]
                chunks = np.array_split(numbers, len(numbers) // _CHUNK + 1)
                for chunk in progress(chunks, f"writing {split}", unit=" chunks"):
                    writer.add(split, images[positions[chunk]], labels[chunk])
            return replace(writer.finish(classes=2), left_out=tuple(level.damaged))


@contextmanager
def _read_level(
    release: RawRelease, variant: Variant, folder: str, workers: int, directory: Path
) -> Iterator[_Level]:
    """Yield the images and metadata of the right folder; the spool is gone afterwards.

    The release has ``pathfinder128`` twice, and of those the one further in,
    ``lra_release/lra_release/``, is right: the labels of the other do not fit its images.
    """
    side = variant.settings.side
    inside = f"{variant.folder}/{folder}/"
    pattern = re.compile(rf"^(.*/|){inside}(?:(imgs/\d+/[^/]+\.png)|metadata/(\d+)\.npy)$")
    outside = f"{release.path.resolve().as_posix()}/" if release.path.is_dir() else ""
    levels: dict[str, _Level] = {}

    with ExitStack() as spools:

        def part(name: str) -> str | None:
            match = pattern.search(outside + name)
            if match is None:
                return None
            root, image, number = match.groups()
            return root + (image or f"metadata/{int(number)}")

        def encoded_images() -> Iterator[tuple[str, str, str, bytes]]:
            for name, file in release.files(part, inside):
                root, image, number = pattern.search(outside + name).groups()
                if any(_depth(other) > _depth(root) for other in levels):
                    continue
                if root not in levels:
                    spool = spools.enter_context(TemporaryFile(dir=directory))
                    levels[root] = _Level(spool)
                where = release.where(name)
                if image:
                    content = read_whole(file, where, largest_file(side))
                    if not content and (variant.folder, folder, image) in _KNOWN_DAMAGED:
                        logger.info(f"{where} is empty, as is known of the release: left out")
                        levels[root].damaged.append(image)
                    else:
                        yield root, image, where, content
                else:
                    levels[root].metadata[int(number)] = where, read_whole(file, where)

        decode = partial(_decode, side)
        for decoded in ordered_map(decode, _chunks(encoded_images()), workers):
            for root, image, pixels in decoded:
                levels[root].positions[image] = len(levels[root].positions)
                levels[root].spool.write(pixels)
        deepest = max(map(_depth, levels))
        chosen = [root for root in levels if _depth(root) == deepest]
        if len(chosen) > 1:
            raise UserError(
                f"{release.path} has {variant.folder} more than once ({', '.join(chosen)}); "
                "give --raw the right one"
            )
        logger.info("reading %s%s", chosen[0], inside)
        levels[chosen[0]].spool.flush()
        yield levels[chosen[0]]


def _depth(root: str) -> int:
    return root.count("lra_release/")


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    while chunk := list(islice(items, _CHUNK)):
        yield chunk


def _decode(side: int, images: list[tuple[str, str, str, bytes]]) -> list[tuple[str, str, bytes]]:
    decoded = []
    for root, image, where, content in images:
        picture = read_image(io.BytesIO(content), where, side=side)
        decoded.append((root, image, to_grey(picture).tobytes()))
    return decoded


def _in_order_of_metadata(level: _Level) -> tuple[np.ndarray, np.ndarray]:
    """Return the index in the spool and the label of each image that the metadata lists."""
    positions, labels, listed = [], [], set()
    for _, (name, text) in sorted(level.metadata.items()):
        for number, line in numbered_lines(io.BytesIO(text), name):
            columns = line.decode(errors="replace").split()
            if len(columns) < 4 or columns[3] not in ("0", "1"):
                raise UserError(f"{name}, line {number}: not a folder, file, id and label 0 or 1")
            image = f"{columns[0]}/{columns[1]}"
            if image in level.damaged:
                continue
            if image not in level.positions:
                raise UserError(f"{name}, line {number}: there is no image {image}")
            if image in listed:
                raise UserError(f"{name}, line {number}: {image} is listed a second time")
            listed.add(image)
            positions.append(level.positions[image])
            labels.append(int(columns[3]))
    if not labels:
        raise UserError("the metadata of the release is missing: metadata/*.npy, text files")
    return np.array(positions), np.array(labels)
