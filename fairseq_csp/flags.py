"""Values of flags that fairseq would replace are refused, whatever the command."""

from argparse import Namespace

from fairseq.dataclass import utils

from fairseq_csp.errors import UserError

_override_module_args = utils.override_module_args


def override_module_args(args: Namespace) -> tuple[list[str], list[str]]:
    """Turn flags into changes of the configuration; in the place of fairseq's function.

    Args:
        args: the flags.

    Returns:
        The changes, and what to delete.

    Raises:
        UserError: one has ``${`` in it: the configuration reads ``${...}``, the environment's
            variables among it, even in paths.
    """
    for value in vars(args).values():
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{value} has ${{ in it, which fairseq would replace: rename it")
    return _override_module_args(args)


utils.override_module_args = override_module_args
