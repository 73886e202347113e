"""Values of flags: those that fairseq would replace are refused, whatever the command."""

from argparse import ArgumentTypeError, Namespace

from fairseq.dataclass import utils

from fairseq_csp.errors import UserError

_override_module_args = utils.override_module_args


def positive(text: str) -> int:
    """Read a flag's value that must be a whole number above zero; a ``type`` for argparse.

    Args:
        text: the value as it was written.

    Returns:
        The number, at least 1.

    Raises:
        ArgumentTypeError: it is no whole number, or not above zero.
    """
    try:
        value = int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text} is no whole number") from None
    if value < 1:
        raise ArgumentTypeError(f"{text} is not above zero")
    return value


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
