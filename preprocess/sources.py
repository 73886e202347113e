"""The one table of the six data sets: raw files, where they come from, full counts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fairseq_csp.errors import UserError

DATA_DIRECTORY = Path("lra_data")
RAW_DIRECTORY = DATA_DIRECTORY / "raw"


@dataclass(frozen=True)
class Download:
    """A raw file: its name in ``lra_data/raw/``, public address, size, and folder inside."""

    file: str
    address: str
    size: str
    unpacked: str


LRA_RELEASE = Download(
    "lra_release.gz",
    "https://storage.googleapis.com/long-range-arena/lra_release.gz",
    "7.7 GB",
    unpacked="lra_release",
)


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        name: Its name on the command line, and that of its directory in ``lra_data/``.
        download: The raw release.
        counts: Examples of each split in the full set.
        generated: Whether the full set can be made without a download.
    """

    name: str
    download: Download
    counts: Mapping[str, int]
    generated: bool = False

    @property
    def directory(self) -> Path:
        """Where the prepared set goes unless told otherwise."""
        return DATA_DIRECTORY / self.name

    @property
    def demo_directory(self) -> Path:
        """Where the small stand-in of ``--demo`` goes unless told otherwise."""
        return DATA_DIRECTORY / f"{self.name}-demo"

    def find_raw(self, directory: Path = RAW_DIRECTORY) -> Path | None:
        """Return the raw release where it lies in ``directory``, else None.

        The directory that unpacks from it does as well.
        """
        candidates = (directory / self.download.file, directory / self.download.unpacked)
        return next((path for path in candidates if path.exists()), None)

    def raw_at(self, path: str) -> Path:
        """Return the raw release that ``--raw`` names: ``path``, or the archive in it."""
        archive = os.path.join(path, self.download.file)
        return Path(archive if os.path.isfile(archive) else path)

    def require_raw(self, directory: Path = RAW_DIRECTORY) -> Path:
        """Return the raw release like :meth:`find_raw`.

        Raises:
            UserError: it is not there; the message says what to download and what to run.
        """
        raw = self.find_raw(directory)
        if raw is None:
            raise UserError(
                f"{self.name} needs the raw file {self.download.file} ({self.download.size}): "
                f"download it from {self.download.address} into {directory}/ and run "
                f"`python -m preprocess {self.name}`, or name the place where it lies: "
                f"`python -m preprocess {self.name} --raw PATH`"
            )
        return raw


def _splits(train: int, valid: int, test: int) -> Mapping[str, int]:
    return {"train": train, "valid": valid, "test": test}


DATA_SETS: Mapping[str, DataSet] = {
    data_set.name: data_set
    for data_set in (
        DataSet("listops", LRA_RELEASE, _splits(96_000, 2_000, 2_000), generated=True),
        DataSet(
            "imdb-4000",
            Download(
                "aclImdb_v1.tar.gz",
                "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
                "84 MB",
                unpacked="aclImdb",
            ),
            _splits(25_000, 25_000, 25_000),
        ),
        DataSet("aan", LRA_RELEASE, _splits(147_086, 18_090, 17_437)),
        DataSet(
            "cifar10",
            Download(
                "cifar-10-python.tar.gz",
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                "170 MB",
                unpacked="cifar-10-batches-py",
            ),
            _splits(45_000, 5_000, 10_000),
        ),
        DataSet("pathfinder", LRA_RELEASE, _splits(160_000, 20_000, 20_000), generated=True),
        DataSet("path-x", LRA_RELEASE, _splits(160_000, 20_000, 20_000), generated=True),
    )
}
