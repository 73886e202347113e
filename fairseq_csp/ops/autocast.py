"""Keeping what needs float32 out of autocast."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

Others = ParamSpec("Others")
Function = Callable[Concatenate[Tensor, Others], Tensor]


def outside_autocast(function: Function[Others]) -> Function[Others]:
    """Let a function compute in the dtypes of its arguments, whatever autocast is around it.

    Args:
        function: its first argument is a tensor, on whose device it computes.
    """

    @wraps(function)
    def outside(first: Tensor, /, *others: Others.args, **named: Others.kwargs) -> Tensor:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *others, **named)

    return outside
