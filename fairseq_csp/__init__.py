"""Channel-wise sample permutation and its baselines on the Long Range Arena.

For PyTorch: ``from fairseq_csp import channel_wise_sample_permutation, build_attention``; neither
imports fairseq. For fairseq a user directory: where fairseq imports this package as ``--user-dir``,
or another user directory that imports it, :mod:`fairseq_csp.plugin` is loaded, which registers
tasks and models. A program that needs them imports the plugin itself.
"""

import importlib
import sys

from .errors import UserError

__version__ = "0.2.0"

# what the package gives, and the module that has it
_EXPORTS = {
    "build_attention": "fairseq_csp.modules.standalone",
    "channel_wise_sample_permutation": "fairseq_csp.ops.csp",
    "permutation_matrix": "fairseq_csp.ops.csp",
    "register_attention": "fairseq_csp.modules.attention",
}
__all__ = ["UserError", "__version__", *_EXPORTS]


def __getattr__(name: str) -> object:
    """Import an exported name when it is asked for."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    """List the exported names."""
    return sorted(__all__)


def _fairseq_imports_a_user_directory() -> bool:
    frame = sys._getframe()
    while frame := frame.f_back:
        if frame.f_code.co_name == "import_user_module":
            return frame.f_globals.get("__name__") == "fairseq.utils"
    return False


if __name__ != "fairseq_csp":
    raise UserError(
        f"{__path__[0]} is fairseq_csp under another name, {__name__}: its modules would be there "
        "twice; give --user-dir the directory fairseq_csp itself, or one of your own that imports "
        "fairseq_csp"
    )
if _fairseq_imports_a_user_directory():
    importlib.import_module("fairseq_csp.plugin")
