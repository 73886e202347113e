"""One tiny training run, for the tests of what is made from runs; tests that leave no handler."""

import logging
import shutil
from collections.abc import Iterator

import pytest

from tests.helpers.commands import generate_listops, train


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Take away the handlers that a test's modules add: they write into its closed output."""
    root = logging.getLogger()
    kept = root.handlers[:]
    try:
        return (yield)
    finally:
        root.handlers[:] = kept


@pytest.fixture(scope="session")
def tiny_listops(tmp_path_factory):
    return generate_listops(tmp_path_factory.mktemp("data") / "listops-tiny")


@pytest.fixture(scope="session")
def updates():
    """How many the tiny run has: an epoch of 8 and one of the next."""
    return 9


@pytest.fixture(scope="session")
def trained_run(tiny_listops, updates, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "seed-1"
    run.mkdir()
    train(
        tiny_listops, run, "--max-update", updates, "--seed", "1", "--log-format", "simple",
        "--log-file", run / "train.log", "--tensorboard-logdir", run / "tensorboard",
        "--no-epoch-checkpoints",
    )  # fmt: skip
    return run


@pytest.fixture
def runs(trained_run, tmp_path):
    """A directory with a copy of the trained run."""
    shutil.copytree(trained_run, tmp_path / "runs" / "seed-1")
    return tmp_path / "runs"
