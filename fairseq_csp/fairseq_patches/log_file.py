"""Each line stands once in ``--log-file``, in a directory that is made where it is missing.

fairseq opens the file anew at each epoch beside the earlier ones, and writes a line of the n-th
epoch n times.
"""

import logging
import os

from fairseq.logging import progress_bar

from fairseq_csp.fairseq_patches import replaces


@replaces(progress_bar, "progress_bar")
def make(
    *arguments: object, log_file: str | None = None, **options: object
) -> progress_bar.BaseProgressBar:
    """Make what logs an epoch.

    Args:
        arguments: as fairseq's.
        log_file: where to log as well.
        options: as fairseq's.
    """
    is_open = log_file is not None and any(
        isinstance(handler, logging.FileHandler)
        and handler.baseFilename == os.path.abspath(log_file)
        for handler in progress_bar.logger.handlers
    )
    return make.original(*arguments, log_file=None if is_open else log_file, **options)
