"""What is changed in fairseq 0.12, a file a change; loaded by :mod:`fairseq_csp.plugin` alone.

Each file says what fairseq does and why that is replaced.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

Replacement = TypeVar("Replacement", bound=Callable[..., Any])


def replaces(owner: Any, name: str) -> Callable[[Replacement], Replacement]:
    """Put the decorated function in the place of ``owner.name``.

    Args:
        owner: a module or class of fairseq.
        name: of its function; the decorated one has it as ``original``.
    """
    static = isinstance(inspect.getattr_static(owner, name), staticmethod)

    def decorate(function: Replacement) -> Replacement:
        function.original = getattr(owner, name)  # type: ignore[attr-defined]
        setattr(owner, name, staticmethod(function) if static else function)
        return function

    return decorate


def is_fairseqs(kind: type) -> bool:
    """Tell whether a class comes with fairseq, and not from here or the user's own directory."""
    return kind.__module__.partition(".")[0] in ("fairseq", "fairseq_cli", "examples")


# what stands for functions of fairseq's training program, which imports them by name
_in_training: dict[str, Callable[..., Any]] = {}


def replaces_in_training(name: str) -> Callable[[Replacement], Replacement]:
    """Put the decorated function in the place of one of ``fairseq_cli.train``'s, once it is loaded.

    Args:
        name: of its function; the decorated one has it as ``original``.
    """

    def decorate(function: Replacement) -> Replacement:
        _in_training[name] = function
        patch_training()
        return function

    return decorate


def patch_training() -> None:
    """Apply what stands for functions of the training program, under either of its names."""
    for module in map(sys.modules.get, ("fairseq_cli.train", "__main__")):
        if hasattr(module, "validate_and_save"):
            for name, function in _in_training.items():
                if getattr(module, name) is not function:
                    replaces(module, name)(function)
