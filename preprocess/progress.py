"""Progress of long work: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

SECONDS = 30.0  # between two lines

logger = logging.getLogger(__name__)


def progress(
    items: Iterable[Item] | None = None,
    what: str = "",
    *,
    total: int | None = None,
    unit: str,
    scale: bool = False,
) -> tqdm | Lines[Item]:
    """Show the progress of what is iterated over, or of what ``update`` is told.

    Args:
        items: What is iterated over, if anything.
        what: What is done, such as ``writing train``.
        total: How much there is to do; None: as many as ``items`` has, if that is known.
        unit: What is counted, such as `` images``.
        scale: Write large numbers with k, M or G.

    Returns:
        A context manager that is iterable and has ``n``, what is done, and ``update(number)``.
    """
    if sys.stderr.isatty():
        return tqdm(items, what, total, leave=False, unit=unit, unit_scale=scale)
    return Lines(items, what, total, unit, scale)


class Lines(Generic[Item]):
    """Logs a line now and then, and none for what is done soon."""

    def __init__(
        self,
        items: Iterable[Item] | None,
        what: str,
        total: int | None,
        unit: str,
        scale: bool,
    ) -> None:
        self.n = 0
        self._items = items
        self._what = what
        self._total = len(items) if total is None and hasattr(items, "__len__") else total
        self._unit = unit
        self._scale = scale
        self._next = time.monotonic() + SECONDS

    def __enter__(self) -> Lines[Item]:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __iter__(self) -> Iterator[Item]:
        for item in self._items:
            yield item
            self.update()

    def update(self, number: int = 1) -> None:
        """Count ``number`` more."""
        self.n += number
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + SECONDS
        done = self._shown(self.n)
        if self._total:
            done += f" of {self._shown(self._total)} ({self.n / self._total:.0%})"
        logger.info(f"{self._what}: {done}{self._unit if not self._scale else ''}")

    def _shown(self, number: int) -> str:
        return tqdm.format_sizeof(number) + self._unit if self._scale else f"{number:,}"
