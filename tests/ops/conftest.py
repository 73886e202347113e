"""Tests that run over every implementation of the operators."""

import pytest

from tests.helpers.kernels import INTERPRETED, use_implementation


@pytest.fixture(params=["triton"] if INTERPRETED else ["native", "reference"])
def every_implementation(request, monkeypatch):
    """The name of the implementation in use."""
    use_implementation(request.param, monkeypatch)
    return request.param
