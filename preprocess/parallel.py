"""Work spread over processes, results in order."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Like ``map``, in ``workers`` processes; the results do not depend on their number.

    ``items`` may be endless: only a few more are taken than results are asked for. Leaving the
    iterator early cancels what has not started.
    """
    if workers == 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(workers, initializer=_leave_interrupts_to_parent)
    try:
        pending = deque()
        for item in items:
            with _interrupts_delayed():
                pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _interrupts_delayed() -> Iterator[None]:
    # one that is raised inside a fork is printed and forgotten by the interpreter, and one inside
    # the pool's own locks can stop it for good
    received = []
    previous = {
        number: signal.signal(number, lambda *received_signal: received.append(received_signal))
        for number in _SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


def _leave_interrupts_to_parent() -> None:
    # on Ctrl-C only the parent reports and cleans up
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
