"""Prepare a data set of the Long Range Arena for training.

Every data set has its manual: ``python -m preprocess NAME --help``.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from types import FrameType, ModuleType

from fairseq_csp.errors import UserError
from preprocess import (
    aan,
    cifar10,
    convert,
    everything,
    imdb,
    listops,
    path_x,
    pathfinder,
    show,
)

COMMANDS: dict[str, ModuleType] = {
    "listops": listops,
    "imdb-4000": imdb,
    "aan": aan,
    "cifar10": cifar10,
    "pathfinder": pathfinder,
    "path-x": path_x,
    "all": everything,
    "convert": convert,
    "show": show,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 1 (an error, told in one line), or 130."""
    parser = argparse.ArgumentParser(prog="python -m preprocess", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="NAME")
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    parsed = parser.parse_args(arguments)

    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    signal.signal(signal.SIGTERM, _interrupt)
    message, status = "", 0
    try:
        parsed.run(parsed)
    except (UserError, OSError) as error:
        message, status = f"error: {error}\n", 1
    except KeyboardInterrupt:
        message, status = "interrupted: nothing was left half-written\n", 130
    # written only now that the error is gone, and with it the progress bars it kept open
    sys.stderr.write(message)
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
