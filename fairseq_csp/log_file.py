"""Each line once in ``--log-file``, which fairseq opens anew at each epoch."""

import logging
import os

from fairseq.logging import progress_bar

_make = progress_bar.progress_bar


def make(
    *arguments: object, log_file: str | None = None, **options: object
) -> progress_bar.BaseProgressBar:
    """Make what logs an epoch; in the place of fairseq's ``progress_bar``.

    Args:
        arguments: as there.
        log_file: where to log as well.
        options: as there.
    """
    is_open = log_file is not None and any(
        isinstance(handler, logging.FileHandler)
        and handler.baseFilename == os.path.abspath(log_file)
        for handler in progress_bar.logger.handlers
    )
    return _make(*arguments, log_file=None if is_open else log_file, **options)


progress_bar.progress_bar = make
