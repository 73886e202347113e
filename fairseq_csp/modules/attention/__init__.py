"""The registry of attention functions: what mixes the positions of a row.

Every file in this folder whose name does not begin with an underscore holds the function of that
name and is imported with the registry, so that a new function is one new file here (or in a user
directory of somebody else's), taken by every architecture that can as ``--attention NAME``. Its
options are the fields of a dataclass beside it and become the flags ``--NAME-OPTION``.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention._base import (
    AttentionContext,
    AttentionFunction,
    AttentionMaps,
    CarriedAttention,
    HeadAttention,
    NoOptions,
    QueryKeyAttention,
    Stream,
    ValueAttention,
    WideAttention,
    after_update,
    auxiliary_loss,
    check_counts,
    flag_of,
    option,
    read_options,
    start_batch,
)

__all__ = [
    "ATTENTION_REGISTRY",
    "AttentionContext",
    "AttentionFunction",
    "AttentionMaps",
    "CarriedAttention",
    "HeadAttention",
    "NoOptions",
    "QueryKeyAttention",
    "Stream",
    "ValueAttention",
    "WideAttention",
    "after_update",
    "attention_class",
    "auxiliary_loss",
    "check_counts",
    "flag_of",
    "make_attention",
    "option",
    "read_options",
    "register_attention",
    "start_batch",
]

ATTENTION_REGISTRY: dict[str, type[AttentionFunction]] = {}
# called with the name after each registration
after_registration: list[Callable[[str], None]] = []


def register_attention(
    name: str, options: type = NoOptions
) -> Callable[[type[AttentionFunction]], type[AttentionFunction]]:
    """Register an attention function under a name for ``--attention``.

    Args:
        name: the name; that of the file in which the class stands.
        options: the dataclass of its options; each field becomes a flag ``--NAME-OPTION``.

    Raises:
        ValueError: the name is taken or is not the file's, or the class is none of the three kinds.
    """

    def register(cls: type[AttentionFunction]) -> type[AttentionFunction]:
        module = cls.__module__.rpartition(".")[2]
        if name in ATTENTION_REGISTRY:
            raise ValueError(f"an attention function named {name!r} is registered already")
        if not issubclass(cls, ValueAttention | QueryKeyAttention | HeadAttention):
            raise ValueError(
                f"{cls.__name__} must extend ValueAttention, QueryKeyAttention or HeadAttention"
            )
        if module not in (name, "__main__"):
            raise ValueError(
                f"{cls.__name__} is registered as {name!r} in {module}.py: name the file {name}.py"
            )
        cls.name, cls.options_type = name, options
        ATTENTION_REGISTRY[name] = cls
        for function in after_registration:
            function(name)
        return cls

    return register


def attention_class(name: str) -> type[AttentionFunction]:
    """Look up an attention function.

    Args:
        name: the name it was registered under.

    Raises:
        UserError: there is none of that name; the message lists those there are.
    """
    if name not in ATTENTION_REGISTRY:
        known = ", ".join(sorted(ATTENTION_REGISTRY))
        raise UserError(f"--attention is {name!r}; it must be one of {known}")
    return ATTENTION_REGISTRY[name]


def make_attention(
    name: str, context: AttentionContext, options: dict[str, Any]
) -> AttentionFunction:
    """Build an attention function.

    Args:
        name: the name it was registered under.
        context: where it stands in the model.
        options: its options by name.

    Raises:
        UserError: there is none of that name, or an option is bad.
    """
    cls = attention_class(name)
    return cls(context, read_options(cls.options_type, name, options))


for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
