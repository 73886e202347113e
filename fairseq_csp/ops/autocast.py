"""Keeping what needs float32 out of autocast."""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Tensor])


def outside_autocast(function: Function) -> Function:
    """Let a function compute in the dtypes of its arguments, whatever autocast is around it.

    Args:
        function: its first argument is a tensor, on whose device it computes.
    """

    @wraps(function)
    def outside(first: Tensor, *others: Tensor | int) -> Tensor:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *others)

    return outside
