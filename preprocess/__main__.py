"""Prepare a data set for training: of the Long Range Arena, or of image classification.

Every data set has its manual: ``python -m preprocess NAME --help``.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from importlib import import_module
from types import FrameType

from fairseq import utils

from fairseq_csp.datasets import DATASETS, IMAGE_SETS
from fairseq_csp.errors import UserError
from fairseq_csp.flags import user_directory

# what is done with a data set, beside preparing it
TOOLS = {
    "all": "preprocess.everything",
    "download": "preprocess.download",
    "convert": "preprocess.convert",
    "show": "preprocess.show",
    "verify": "preprocess.verify",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 1 (an error, told in one line), or 130."""
    outer = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    outer.add_argument(
        "--user-dir",
        metavar="DIR",
        type=user_directory,
        help="a user directory that registers data sets of its own",
    )
    user, arguments = outer.parse_known_args(arguments)
    if user.user_dir is not None:
        utils.import_user_module(user)
    parser = argparse.ArgumentParser(
        prog="python -m preprocess", description=__doc__, parents=[outer]
    )
    commands = parser.add_subparsers(required=True, metavar="NAME")
    modules = {name: data_set.module for name, data_set in (DATASETS | IMAGE_SETS).items()} | TOOLS
    for name, path in modules.items():
        module = import_module(path)
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
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        # a terminal may know fewer characters than a text or a file's name has
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
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
