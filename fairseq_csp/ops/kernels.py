"""Which implementation of the operators is used: PyTorch's operators, C++ or Triton.

``FAIRSEQ_CSP_KERNELS`` says which may be used beside the reference, which is written with PyTorch's
own operators and works everywhere: ``auto`` (the default: native on a CPU, triton on a GPU),
``reference``, ``native`` (C++, on a CPU) or ``triton`` (on a GPU).
"""

import logging
import os
from functools import lru_cache
from importlib import import_module
from typing import Any

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
        UserError: kernels are asked for that cannot be built or loaded.
    """
    choice = chosen()
    if device.type == "cpu" and choice in ("auto", "native") and _native(choice):
        return "native"
    # Triton's interpreter, for tests, works on a CPU
    on_device = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    if choice == "triton" and on_device and _triton(choice):
        return "triton"
    if choice == "auto" and device.type == "cuda" and _triton(choice):
        return "triton"
    return "reference"


def fused(*tensors: Tensor) -> Any | None:
    """Return the one-pass kernels of ``gates/`` that take some tensors, None where none do.

    Args:
        tensors: they must be of one shape (batch, channels, positions) with contiguous positions,
            and of one dtype: on a CPU float32 or bfloat16.

    Returns:
        A namespace of operators, the same names in each.
    """
    first = tensors[0]
    if torch.compiler.is_compiling() or first.dim() != 3:
        return None
    if any(x.shape != first.shape or x.dtype != first.dtype or x.stride(2) != 1 for x in tensors):
        return None
    name = implementation(first.device)
    if name == "native" and first.dtype in (torch.float32, torch.bfloat16):
        return torch.ops.fairseq_csp_native
    return torch.ops.fairseq_csp_triton if name == "triton" and first.numel() else None


def native_operators(*tensors: Tensor) -> Any | None:
    """Return the C++ kernels for the channels of some tensors, None where they do not serve.

    Args:
        tensors: on a CPU, of one dtype: float32, bfloat16 or float64; those of three dimensions
            (batch, channels, positions) with contiguous positions.

    Returns:
        A namespace of operators.
    """
    first = tensors[0]
    if torch.compiler.is_compiling() or first.device.type != "cpu":
        return None
    if first.dtype not in (torch.float32, torch.bfloat16, torch.float64):
        return None
    if any(x.dtype != first.dtype or (x.dim() == 3 and x.stride(2) != 1) for x in tensors):
        return None
    return torch.ops.fairseq_csp_native if implementation(first.device) == "native" else None


def triton_operators(x: Tensor, *parameters: Tensor) -> Any | None:
    """Return the Triton kernels for the channels of a tensor, None where they do not serve.

    Args:
        x: on a GPU (batch, channels, positions), not empty, with contiguous positions.
        parameters: of the same dtype.

    Returns:
        A namespace of operators.
    """
    if torch.compiler.is_compiling() or x.dim() != 3 or not x.numel() or x.stride(2) != 1:
        return None
    if any(parameter.dtype != x.dtype for parameter in parameters):
        return None
    return torch.ops.fairseq_csp_triton if implementation(x.device) == "triton" else None


def contiguous_positions(grad: Tensor) -> Tensor:
    """Return a gradient as the kernels take it; that of a sum is one number expanded."""
    return grad if grad.stride(2) == 1 else grad.contiguous()


@lru_cache(maxsize=len(CHOICES))
def _native(choice: str) -> bool:
    problem = native.load()
    if problem is None:
        return True
    if choice == "native":
        raise UserError(f"{VARIABLE} is native, but the kernels cannot be built: {problem}")
    logger.warning("no CPU kernels, PyTorch's own operators instead: %s", problem)
    return False


@lru_cache(maxsize=len(CHOICES))
def _triton(choice: str) -> bool:
    try:
        # registers the operators
        import_module("fairseq_csp.ops.gates.triton_kernels")
        import_module("fairseq_csp.ops.norms.triton_kernels")
        return True
    except ImportError as error:
        if choice == "triton":
            raise UserError(f"{VARIABLE} is triton, but it cannot be loaded: {error}") from error
        logger.warning("no Triton, PyTorch's own operators instead: %s", error)
        return False
