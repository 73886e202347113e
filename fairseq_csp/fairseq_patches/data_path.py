"""A data directory may have a colon in its path.

fairseq takes it for the paths of several directories, and looks into each for further splits.
"""

import os

from fairseq.data import data_utils

from fairseq_csp.fairseq_patches import replaces


@replaces(data_utils, "_find_extra_valid_paths")
def find_extra_valid_paths(dataset_path: str) -> set[str]:
    """Return the names of splits that are called ``valid`` with a number.

    Args:
        dataset_path: a directory, or several with colons between them.
    """
    if os.pathsep in dataset_path and os.path.isdir(dataset_path):
        return set()
    return find_extra_valid_paths.original(dataset_path)
