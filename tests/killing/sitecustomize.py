"""On PYTHONPATH: lets a process kill itself at a moment that a test chooses.

``KILL_AT=N``: at the N-th moment of its writing of checkpoints. The moments of a file: it is open
and empty; half of it is written; all of it is written and is about to take its name; it has its
name. ``KILL_AFTER=PATTERN``: as soon as it has logged such a line, ``LOGGER | MESSAGE``.
"""

import builtins
import itertools
import logging
import os
import re
import signal

MOMENTS = itertools.count(1)
OPEN, REPLACE, HANDLE = builtins.open, os.replace, logging.Logger.handle


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


def moment():
    if next(MOMENTS) == int(os.environ.get("KILL_AT", 0)):
        kill_myself()


class File:
    def __init__(self, file):
        self.file = file
        moment()

    def write(self, content):
        half = len(content) // 2
        self.file.write(content[:half])
        self.file.flush()
        moment()
        return half + self.file.write(content[half:])

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def open_(path, mode="r", *arguments, **keywords):
    file = OPEN(path, mode, *arguments, **keywords)
    return File(file) if "w" in mode and "checkpoint" in str(path) else file


def replace(source, path, **keywords):
    if "checkpoint" not in str(path):
        return REPLACE(source, path, **keywords)
    moment()
    REPLACE(source, path, **keywords)
    moment()


def handle(logger, record):
    HANDLE(logger, record)
    pattern = os.environ.get("KILL_AFTER")
    if pattern and re.search(pattern, f"{logger.name} | {record.getMessage()}"):
        kill_myself()


builtins.open, os.replace, logging.Logger.handle = open_, replace, handle
