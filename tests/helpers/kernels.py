"""Choosing an implementation of the operators in a test."""

import shutil

import pytest

from fairseq_csp.ops import native


def use_implementation(name, monkeypatch):
    """Use it for the rest of the test, which is skipped only where there is no compiler."""
    monkeypatch.setenv("FAIRSEQ_CSP_KERNELS", name)
    if name == "native" and shutil.which("c++") is None:
        pytest.skip("there is no compiler")
    if name == "native":
        assert native.load() is None
