"""A log or TensorBoard file that cannot be written ends the training with one sentence.

logging prints a traceback for each line and goes on; TensorBoard's writer fails in a thread of its
own with one traceback, at the next number with another, and with a third when the process ends.
"""

import logging
import sys
import threading

from fairseq.logging import progress_bar

from fairseq_csp.errors import UserError
from fairseq_csp.fairseq_patches import replaces


def _not_written(what: str, error: OSError) -> UserError:
    return UserError(
        f"{what} could not be written ({error.strerror}): make room, then the same command goes on "
        "from the last checkpoint"
    )


@replaces(logging.Handler, "handleError")
def handle_error(handler: logging.Handler, record: logging.LogRecord) -> None:
    """End the program where a line cannot be written.

    Args:
        handler: what writes it.
        record: the line.

    Raises:
        UserError: the file or the pipe takes no more.
    """
    error = sys.exc_info()[1]
    if isinstance(error, OSError):
        # what is written no more needs no closing either
        logging.raiseExceptions = False
        raise _not_written(getattr(handler, "baseFilename", "the output"), error) from error
    handle_error.original(handler, record)


@replaces(progress_bar.TensorboardProgressBarWrapper, "_log_to_tensorboard")
def log_to_tensorboard(
    bar: progress_bar.TensorboardProgressBarWrapper, *arguments: object, **options: object
) -> None:
    """Write numbers for TensorBoard.

    Args:
        bar: what writes them.
        arguments: as fairseq's.
        options: as fairseq's.

    Raises:
        UserError: they cannot be written.
    """
    try:
        log_to_tensorboard.original(bar, *arguments, **options)
    except OSError as error:
        # closing them at the end would fail in the same way
        progress_bar._tensorboard_writers.clear()
        raise _not_written(bar.tensorboard_logdir, error) from error


@replaces(threading, "excepthook")
def excepthook(arguments: threading.ExceptHookArgs) -> None:
    """Leave an error of TensorBoard's thread to the training, which meets it at the next number.

    Args:
        arguments: the error, and the thread that it ended.
    """
    from_tensorboard = type(arguments.thread).__module__.startswith("tensorboard.")
    if not (from_tensorboard and isinstance(arguments.exc_value, OSError)):
        excepthook.original(arguments)
