"""What the preparation of a data set wrote down about it, in ``summary.json``."""

from __future__ import annotations

import json
from pathlib import Path

from fairseq_csp.data.files import open_file, read_whole
from fairseq_csp.errors import UserError

SUMMARY_FILE = "summary.json"


def read_summary(directory: Path | str) -> dict | None:
    """Return the summary of a prepared set.

    Args:
        directory: the prepared set.

    Returns:
        The object in its ``summary.json``; None where there is none, as in a published set, or it
        is damaged.
    """
    path = Path(directory) / SUMMARY_FILE
    try:
        with open_file(path) as file:
            summary = json.loads(read_whole(file, str(path)))
    except (OSError, UserError, ValueError, RecursionError):
        return None
    return summary if isinstance(summary, dict) else None
