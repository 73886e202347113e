"""What is changed in fairseq 0.12, a file a change; loaded by :mod:`fairseq_csp.plugin` alone.

Each file says what fairseq does and why that is replaced.
"""

import inspect
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
