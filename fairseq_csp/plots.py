"""matplotlib, which is needed for pictures only."""

import logging
from types import ModuleType

from fairseq_csp.errors import UserError
from fairseq_csp.output import printable


def load_pyplot() -> ModuleType:
    """Return ``matplotlib.pyplot``, drawing to files only.

    Raises:
        UserError: matplotlib is not installed.
    """
    # fairseq lets every library log all it does
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise UserError(
            "matplotlib is not installed, and the pictures need it: "
            "pip install -c constraints.txt -e '.[plots]'"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def literal(text: object) -> str:
    """Return a text that matplotlib draws as it is, whatever dollar signs are in it."""
    return printable(text).replace("$", r"\$")
