"""Where what is compiled on a machine is kept."""

import os
from pathlib import Path


def directory() -> Path:
    """Return the cache of this user; ``TORCH_EXTENSIONS_DIR`` or ``XDG_CACHE_HOME`` move it."""
    if given := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(given) / "fairseq_csp"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fairseq_csp"
