"""The one table of data sets: raw files, counts, task, architectures.

A data set is an entry here and a module that prepares it (``preprocess/NAME.py``, with
``add_arguments(parser)`` and ``run(arguments)``); everything else looks it up in ``DATASETS``, or,
where images are classified as images, in ``IMAGE_SETS``. One outside this repository is registered
by a user directory: :func:`register_dataset`.

Only the standard library is imported here, as in ``recipes.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DATA_DIRECTORY = Path("lra_data")
RAW_DIRECTORY = DATA_DIRECTORY / "raw"


@dataclass(frozen=True)
class Download:
    """A raw file.

    Attributes:
        file: its name in ``lra_data/raw/``.
        address: where it is published.
        size: roughly, for a message.
        unpacked: the directory that unpacks from it.
        bytes: its exact size, where known.
        sha256: of its content, where known.
    """

    file: str
    address: str
    size: str
    unpacked: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        name: on every command line, and of its directory in ``lra_data/``.
        task: name of the fairseq task.
        suffix: what its architectures' names end with, as in ``mega_lra_imdb``.
        counts: examples of each split in the full set.
        module: the module that prepares it.
        classes: number of classes.
        download: the raw file; None where there is none.
        generated: whether the full set can be made without a download.
        pixels: mean and standard deviation of the pixels in [0, 1], of each channel in colours;
            None for text, or where the data tell.
        like: the data set whose recipes it is trained with; None: it has its own in ``recipes.py``.
        published: test accuracy in percent by the names of models in ``published.py``, which has
            those of the Long Range Arena.
    """

    name: str
    task: str
    suffix: str
    counts: Mapping[str, int]
    module: str
    classes: int = 2
    download: Download | None = None
    generated: bool = False
    pixels: tuple[float, float] | tuple[tuple[float, ...], tuple[float, ...]] | None = None
    like: str | None = None
    published: Mapping[str, float] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Where the prepared set goes unless told otherwise."""
        return DATA_DIRECTORY / self.name

    @property
    def demo_directory(self) -> Path:
        """Where the small stand-in of ``--demo`` goes unless told otherwise."""
        return DATA_DIRECTORY / f"{self.name}-demo"


DATASETS: dict[str, DataSet] = {}
# those for image classification, with models of their own
IMAGE_SETS: dict[str, DataSet] = {}
IMAGE_CLASSIFICATION = "image-classification"


def register_dataset(data_set: DataSet) -> DataSet:
    """Add a data set to the table.

    Args:
        data_set: the entry.

    Returns:
        The entry.

    Raises:
        ValueError: another data set has this name.
    """
    table = IMAGE_SETS if data_set.task == IMAGE_CLASSIFICATION else DATASETS
    if (DATASETS | IMAGE_SETS).get(data_set.name, data_set) != data_set:
        raise ValueError(f"there is a data set {data_set.name} already")
    table[data_set.name] = data_set
    return data_set


def _splits(train: int, valid: int, test: int) -> dict[str, int]:
    return {"train": train, "valid": valid, "test": test}


LRA_RELEASE = Download(
    "lra_release.gz",
    "https://storage.googleapis.com/long-range-arena/lra_release.gz",
    "7.7 GB",
    unpacked="lra_release",
)
IMDB_RELEASE = Download(
    "aclImdb_v1.tar.gz",
    "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    "84 MB",
    unpacked="aclImdb",
    bytes=84_125_825,
    sha256="c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
)
CIFAR10_RELEASE = Download(
    "cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "170 MB",
    unpacked="cifar-10-batches-py",
    bytes=170_498_071,
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
)
# the six sets of the Long Range Arena as MEGA's authors prepared them
MEGA_RELEASE = Download(
    "lra.zip",
    "https://dl.fbaipublicfiles.com/mega/data/lra.zip",
    "more than 1 GB",
    unpacked="lra",
)

# the six of the Long Range Arena, in its order
register_dataset(
    DataSet(
        "listops",
        task="lra-text",
        suffix="listop",
        counts=_splits(96_000, 2_000, 2_000),
        module="preprocess.listops",
        classes=10,
        download=LRA_RELEASE,
        generated=True,
    )
)
register_dataset(
    DataSet(
        "imdb-4000",
        task="lra-text",
        suffix="imdb",
        counts=_splits(25_000, 25_000, 25_000),
        module="preprocess.imdb",
        download=IMDB_RELEASE,
    )
)
register_dataset(
    DataSet(
        "aan",
        task="lra-text",
        suffix="aan",
        counts=_splits(147_086, 18_090, 17_437),
        module="preprocess.aan",
        download=LRA_RELEASE,
    )
)
register_dataset(
    DataSet(
        "cifar10",
        task="lra-image",
        suffix="cifar10",
        counts=_splits(45_000, 5_000, 10_000),
        module="preprocess.cifar10",
        classes=10,
        download=CIFAR10_RELEASE,
        pixels=(0.48, 0.24),
    )
)
register_dataset(
    DataSet(
        "pathfinder",
        task="lra-image",
        suffix="pf32",
        counts=_splits(160_000, 20_000, 20_000),
        module="preprocess.pathfinder",
        download=LRA_RELEASE,
        generated=True,
        pixels=(0.5, 0.5),
    )
)
register_dataset(
    DataSet(
        "path-x",
        task="lra-image",
        suffix="pf128",
        counts=_splits(160_000, 20_000, 20_000),
        module="preprocess.path_x",
        download=LRA_RELEASE,
        generated=True,
        pixels=(0.5, 0.5),
    )
)

# for the Vision Transformer. The pixels' mean and deviation are those of its published recipes; the
# deviations of CIFAR-10 are a well-known slip (measured: .247 .243 .262) and only scale
register_dataset(
    DataSet(
        "cifar10-rgb",
        task=IMAGE_CLASSIFICATION,
        suffix="cifar10",
        counts=_splits(45_000, 5_000, 10_000),
        module="preprocess.cifar10_rgb",
        classes=10,
        download=CIFAR10_RELEASE,
        pixels=((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    )
)
register_dataset(
    DataSet(
        "cifar100",
        task=IMAGE_CLASSIFICATION,
        suffix="cifar100",
        counts=_splits(45_000, 5_000, 10_000),
        module="preprocess.cifar100",
        classes=100,
        download=Download(
            "cifar-100-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "169 MB",
            unpacked="cifar-100-python",
            bytes=169_001_437,
            sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        ),
        pixels=((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    )
)
register_dataset(
    DataSet(
        "mnist",
        task=IMAGE_CLASSIFICATION,
        suffix="mnist",
        counts=_splits(54_000, 6_000, 10_000),
        module="preprocess.mnist",
        classes=10,
        pixels=((0.1307,), (0.3081,)),
    )
)
register_dataset(
    DataSet(
        "tiny-imagenet",
        task=IMAGE_CLASSIFICATION,
        suffix="tiny_imagenet",
        counts=_splits(90_000, 10_000, 10_000),
        module="preprocess.tiny_imagenet",
        classes=200,
        download=Download(
            "tiny-imagenet-200.zip",
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            "248 MB",
            unpacked="tiny-imagenet-200",
            bytes=248_100_043,
            sha256="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
        ),
    )
)
register_dataset(
    DataSet(
        "image-folder",
        task=IMAGE_CLASSIFICATION,
        suffix="imagenet",
        counts={},
        module="preprocess.image_folder",
        classes=1000,
    )
)
