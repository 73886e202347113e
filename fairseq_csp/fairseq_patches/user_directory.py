"""A ``--user-dir`` that cannot be imported is told of in one sentence.

fairseq ends in a traceback where it is not there, or where another directory of its name has been
imported.
"""

import os
import sys
from argparse import Namespace

from fairseq import utils

from fairseq_csp.errors import UserError
from fairseq_csp.fairseq_patches import patch_training, replaces


@replaces(utils, "import_user_module")
def import_user_module(args: Namespace) -> None:
    """Import a user directory.

    Args:
        args: has ``user_dir``, which may be None.

    Raises:
        UserError: it is not there, or another one of its name has been imported.
    """
    directory = getattr(args, "user_dir", None)
    if directory is not None:
        path = os.path.abspath(directory)
        imported = getattr(sys.modules.get(os.path.basename(path)), "__path__", None)
        if imported is not None:
            if os.path.realpath(path) not in map(os.path.realpath, imported):
                raise UserError(
                    f"--user-dir {directory} cannot be imported beside {imported[0]}, which has "
                    "its name: give that, or rename one of them"
                )
        else:
            try:
                import_user_module.original(args)
            except FileNotFoundError:
                raise UserError(
                    f"--user-dir {directory} is not there: name the directory"
                ) from None
    # it may have been loaded since
    patch_training()
