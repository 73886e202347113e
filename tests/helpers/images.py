"""Tiny image sets in the prepared form, as pixels and as files."""

import numpy as np
from PIL import Image

from fairseq_csp.data.images import Description

SPLITS = {"train": 12, "valid": 5, "test": 3}


def write_pixels(directory, *, shape=(8, 8, 3), classes=3, splits=SPLITS, seed=0):
    """An image set of pixels; what class an image has shows in its brightness."""
    rng = np.random.default_rng(seed)
    for kind in ("input", "label"):
        (directory / kind).mkdir(parents=True)
    for split, count in splits.items():
        labels = np.arange(count) % classes
        images = rng.integers(0, 64, (count, *shape)) + (labels * 60)[:, None, None, None]
        np.save(directory / "input" / f"{split}.npy", images.astype(np.uint8))
        np.save(directory / "label" / f"{split}.npy", labels)
    channels = shape[2]
    names = tuple(f"class {number}" for number in range(classes))
    Description(names, (0.4,) * channels, (0.25,) * channels).write(directory)
    return directory


def write_files(directory, *, size=(20, 26), classes=3, splits=SPLITS):
    """An image set of JPEG files, the first of each split grey, all of sizes of their own."""
    rng = np.random.default_rng(0)
    for kind in ("input", "label"):
        (directory / kind).mkdir(parents=True)
    for split, count in splits.items():
        names = []
        for number in range(count):
            height, width = size[0] + number % 3, size[1] - number % 2
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            path = directory / "files" / split / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[:, :, 0] if number == 0 else pixels).save(path, quality=95)
            names.append(f"{split}/{number}.jpg".encode())
        np.save(directory / "input" / f"{split}.npy", np.array(names))
        np.save(directory / "label" / f"{split}.npy", np.arange(count) % classes)
    names = tuple(f"class {number}" for number in range(classes))
    Description(names, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "files").write(directory)
    return directory
