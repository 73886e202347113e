"""A flag's value is taken as it is written.

fairseq's configuration replaces ``${...}`` in it, even in paths, by other values and by variables
of the environment.
"""

from argparse import Namespace

from fairseq.dataclass import utils

from fairseq_csp.errors import UserError
from fairseq_csp.fairseq_patches import replaces


@replaces(utils, "override_module_args")
def override_module_args(args: Namespace) -> tuple[list[str], list[str]]:
    """Turn flags into changes of the configuration.

    Args:
        args: the flags.

    Returns:
        The changes, and what to delete.

    Raises:
        UserError: one has ``${`` in it.
    """
    for value in vars(args).values():
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{value} has ${{ in it, which fairseq would replace: rename it")
    return override_module_args.original(args)
