"""Registers with fairseq what this package adds, and changes in fairseq what has to be changed.

Loaded where fairseq imports a user directory; programs that need the registration import it.
"""

import importlib
import pkgutil

for _folder in ("criterions", "fairseq_patches", "models", "optim", "tasks"):
    _package = importlib.import_module(f"fairseq_csp.{_folder}")
    for _module in pkgutil.iter_modules(_package.__path__, f"{_package.__name__}."):
        importlib.import_module(_module.name)
