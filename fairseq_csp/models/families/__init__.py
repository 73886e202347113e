"""The families of encoders.

Every file in this folder whose name does not begin with an underscore holds the family of that
name: its encoder, its flags and its architectures.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
