import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from fairseq_csp.errors import UserError
from preprocess.directories import new_directory


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_target_appears_only_at_the_end(tmp_path):
    target = tmp_path / "deep" / "set"
    with new_directory(target, overwrite=False) as directory:
        (directory / "file").write_text("new")
        assert not target.exists()
    assert names(target) == ["file"]
    assert names(target.parent) == ["set"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError])
def test_failure_keeps_the_old_target_and_leaves_nothing(tmp_path, error):
    target = tmp_path / "set"
    target.mkdir()
    (target / "file").write_text("old")
    with (
        pytest.raises(type(error) if isinstance(error, BaseException) else error),
        new_directory(target, overwrite=True) as directory,
    ):
        (directory / "file").write_text("new")
        raise error
    assert names(tmp_path) == ["set"]
    assert (target / "file").read_text() == "old"


def test_overwrite_replaces_and_its_absence_refuses(tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(UserError, match="--overwrite"), new_directory(target, overwrite=False):
        pass
    assert names(target) == ["old"]
    with new_directory(target, overwrite=True) as directory:
        (directory / "new").write_text("new")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["set"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing(tmp_path, number):
    command = [sys.executable, "-m", "preprocess", "listops", "--out", str(tmp_path / "set")]
    process = subprocess.Popen(
        [*command, "--workers", "2"],
        stderr=subprocess.PIPE,
        start_new_session=True,
        # a shell that runs the tests in the background has SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".set.partial-*/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.iterdir())
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in err and b"Traceback" not in err
    assert not list(tmp_path.iterdir())
