"""Fixtures that run the command."""

from pathlib import Path

import pytest

from preprocess.__main__ import main


@pytest.fixture
def prepare(tmp_path, capsys):
    """Run ``python -m preprocess NAME ...`` into ``tmp_path/NAME`` and return that directory."""

    def run(name, *arguments, out=None, workers=1):
        target = Path(out or tmp_path / name)
        options = ["--out", target, "--workers", workers, *arguments]
        status = main([name, *map(str, options)])
        assert status == 0, capsys.readouterr().err
        return target

    return run


@pytest.fixture
def fail(tmp_path, capsys):
    """Run a command that must fail, check that it left nothing, and return its one line."""

    def run(name, *arguments):
        target = tmp_path / "failed" / name
        status = main([name, "--out", str(target), "--workers", "1", *map(str, arguments)])
        progress, separator, message = capsys.readouterr().err.partition("error: ")
        assert status == 1 and separator
        assert message.count("\n") == 1 and "Traceback" not in progress
        assert not target.parent.exists() or not list(target.parent.iterdir())
        return message

    return run
