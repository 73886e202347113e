"""Choosing an implementation of the operators in a test."""

import os
import shutil

import pytest

from fairseq_csp.ops import native

# Triton's interpreter, which runs its kernels without a GPU, must be chosen before it is imported:
# tests/ops/test_triton.py starts a process for it
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# the operators that C++ and Triton have by the same names: how many tensors each takes
GATES = {
    "silu_product": 2,
    "silu_product_backward": 3,
    "silu_dropout": 1,
    "silu_dropout_backward": 2,
    "dropout": 1,
    "dropout_add": 2,
    "gated_residual": 4,
    "gated_residual_backward": 5,
}


def use_implementation(name, monkeypatch):
    """Use it for the rest of the test, which is skipped only where there is no compiler."""
    monkeypatch.setenv("FAIRSEQ_CSP_KERNELS", name)
    if name == "native" and shutil.which("c++") is None:
        pytest.skip("there is no compiler")
    if name == "native":
        assert native.load() is None
