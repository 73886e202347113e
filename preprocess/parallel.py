"""Work spread over processes, results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from threading import Thread
from typing import TypeVar

from fairseq_csp.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Like ``map``, in ``workers`` processes; the results do not depend on their number.

    ``items`` may be endless: only a few more are taken than results are asked for. Leaving the
    iterator early cancels what has not started.

    Raises:
        UserError: one of the processes was killed.
    """
    if workers == 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(workers, initializer=_follow_parent)
    try:
        pending = deque()
        for item in items:
            with _interrupts_delayed():
                pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "one of the processes was killed, as the system does when memory is short: try fewer "
            "with --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def _interrupts_delayed() -> Iterator[None]:
    # one that is raised inside a fork is printed and forgotten by the interpreter, and one inside
    # the pool's own locks can stop it for good
    received = []
    previous = {
        number: signal.signal(number, lambda *received_signal: received.append(received_signal))
        for number in _SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


def _follow_parent() -> None:
    """Leave Ctrl-C and the like to the parent, which reports and cleans up, and end with it."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
