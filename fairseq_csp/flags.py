"""Values of flags."""

from argparse import ArgumentTypeError


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
