"""Which implementation of the operators is used: PyTorch's operators, C++ or Triton.

``FAIRSEQ_CSP_KERNELS`` says which may be used beside the reference, which is written with PyTorch's
own operators and works everywhere: ``auto`` (the default: native on a CPU, triton on a GPU),
``reference``, ``native`` (C++, on a CPU) or ``triton`` (on a GPU).
"""

import logging
import os
from functools import lru_cache

import torch
from torch import Tensor

from fairseq_csp.errors import UserError
from fairseq_csp.ops import native

logger = logging.getLogger(__name__)

VARIABLE = "FAIRSEQ_CSP_KERNELS"
CHOICES = ("auto", "reference", "native", "triton")


def chosen() -> str:
    """Return the value of ``FAIRSEQ_CSP_KERNELS``.

    Raises:
        UserError: it is none of ``CHOICES``.
    """
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in CHOICES:
        raise UserError(f"{VARIABLE} is {choice!r}; it must be one of {', '.join(CHOICES)}")
    return choice


def implementation(device: torch.device) -> str:
    """Return which implementation serves a device.

    Args:
        device: where the tensors are.

    Returns:
        ``native`` or ``triton`` where the operator has such a kernel, else ``reference``.

    Raises:
        UserError: native kernels are asked for, but cannot be built.
    """
    choice = chosen()
    if device.type == "cpu" and choice in ("auto", "native") and _native(choice):
        return "native"
    return "reference"


def native_serves(*tensors: Tensor) -> bool:
    """Tell whether the one-pass kernels of ``gates/gates.cpp`` take some tensors.

    Args:
        tensors: they must be of one shape (batch, channels, positions) with contiguous positions,
            and all float32 or all bfloat16.
    """
    first = tensors[0]
    return (
        not torch.compiler.is_compiling()
        and first.dim() == 3
        and first.dtype in (torch.float32, torch.bfloat16)
        and all(
            x.shape == first.shape and x.dtype == first.dtype and x.stride(2) == 1 for x in tensors
        )
        and implementation(first.device) == "native"
    )


@lru_cache(maxsize=len(CHOICES))
def _native(choice: str) -> bool:
    problem = native.load()
    if problem is None:
        return True
    if choice == "native":
        raise UserError(f"{VARIABLE} is native, but the kernels cannot be built: {problem}")
    logger.warning("no CPU kernels, PyTorch's own operators instead: %s", problem)
    return False
