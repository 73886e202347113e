import contextlib
import errno
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time

import psutil
import pytest

from fairseq_csp.errors import UserError
from preprocess import progress as progress_module
from preprocess.__main__ import main
from preprocess.directories import new_directory
from preprocess.progress import progress
from tests.helpers.commands import hear_signals

SUMMARY = json.dumps({"name": "x", "splits": {}, "source": {}})


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def contents(directory):
    return {path: path.is_file() and path.read_bytes() for path in directory.rglob("*")}


def make(directory, *files, summary=None):
    for name in files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("old")
    if summary is not None:
        directory.mkdir(exist_ok=True)
        (directory / "summary.json").write_text(summary)


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
    make(target, "input/train.npy")
    with (
        pytest.raises(type(error) if isinstance(error, BaseException) else error),
        new_directory(target, overwrite=True) as directory,
    ):
        (directory / "file").write_text("new")
        raise error
    assert names(tmp_path) == ["set"]
    assert (target / "input" / "train.npy").read_text() == "old"


# --- what --overwrite replaces

REPLACED = {
    "prepared": lambda path: make(path, "src-bin/train.bin", summary=SUMMARY),
    "prepared, with a tokenizer": lambda path: make(path, "sentencepiece.model", summary=SUMMARY),
    "prepared, of other files": lambda path: make(
        path, "a/b.x", summary=SUMMARY.replace("{}}", '{}, "files": {"a/b.x": "0"}}')
    ),
    "published": lambda path: make(path, "input/train.src", "label/train.label"),
    "published text": lambda path: make(path, "src-bin/dict.txt", "src-bin/preprocess.log"),
    "with what a Mac adds": lambda path: make(path, "input/.DS_Store", "._x", summary=SUMMARY),
    "empty": lambda path: path.mkdir(),
}
KEPT = {
    "a directory of other files": lambda path: make(path, "thesis.tex"),
    "a note beside a set": lambda path: make(path, "notes.txt", "input/a.npy", summary=SUMMARY),
    "a file within a set": lambda path: make(path, "input/notes.txt", "input/train.npy"),
    "a directory within a set": lambda path: make(path, "input/train.npy/thesis.tex"),
    "another program's summary": lambda path: make(path, summary='{"name": "thesis"}'),
    "a damaged summary": lambda path: make(path, "input/train.npy", summary="{"),
    "empty directories": lambda path: (path / "input").mkdir(parents=True),
    "a file": lambda path: path.write_text("thesis"),
    "a link": lambda path: path.symlink_to("elsewhere"),
    "a link within a set": lambda path: [path.mkdir(), (path / "input").symlink_to("/etc")],
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a pipe": lambda path: os.mkfifo(path),
    "a pipe as summary": lambda path: [path.mkdir(), os.mkfifo(path / "summary.json")],
}


@pytest.mark.parametrize("what", REPLACED)
def test_overwrite_replaces_what_was_prepared(tmp_path, what):
    target = tmp_path / "set"
    REPLACED[what](target)
    with pytest.raises(UserError, match="--overwrite"), new_directory(target, overwrite=False):
        pass
    with new_directory(target, overwrite=True) as directory:
        (directory / "new").write_text("new")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["set"]


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("what", KEPT)
def test_nothing_else_is_replaced_and_nothing_is_left_beside_it(tmp_path, what, overwrite):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "set"
    KEPT[what](target)
    before = contents(tmp_path)
    with (
        pytest.raises(UserError, match=r"--overwrite") as caught,
        new_directory(target, overwrite=overwrite),
    ):
        pytest.fail("began to prepare")
    assert str(target) in str(caught.value)
    assert contents(tmp_path) == before


def test_the_command_refuses_alike(tmp_path, capsys):
    make(tmp_path / "thesis", "thesis.tex")
    assert main(["listops", "--demo", "--out", str(tmp_path / "thesis"), "--overwrite"]) == 1
    error = capsys.readouterr().err
    assert "thesis is no prepared data set: thesis.tex is in it" in error
    assert names(tmp_path / "thesis") == ["thesis.tex"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_appears_meanwhile_stays(tmp_path, overwrite):
    target = tmp_path / "set"
    with (
        pytest.raises(UserError, match="appeared or changed while it was being prepared"),
        new_directory(target, overwrite=overwrite),
    ):
        make(target, "thesis.tex")
    assert names(tmp_path) == ["set"] and names(target) == ["thesis.tex"]


def test_what_takes_the_place_of_the_old_target_meanwhile_stays(tmp_path):
    target = tmp_path / "set"
    make(target, "input/train.npy")
    with (
        pytest.raises(UserError, match="appeared or changed"),
        new_directory(target, overwrite=True),
    ):
        target.rename(tmp_path / "moved")
        make(target, "thesis.tex")
    assert names(tmp_path) == ["moved", "set"] and names(target) == ["thesis.tex"]


def test_of_two_preparations_of_one_target_one_is_refused(tmp_path):
    with new_directory(tmp_path / "set", overwrite=False) as directory:
        (directory / "file").write_text("first")
        command = [sys.executable, "-m", "preprocess", "listops", "--demo", "--out"]
        answer = subprocess.run(
            [*command, str(tmp_path / "set")], capture_output=True, text=True, timeout=120
        )
        assert answer.returncode == 1
        assert f"error: another process is preparing {tmp_path / 'set'}" in answer.stderr
        with new_directory(tmp_path / "other", overwrite=False):
            pass
    assert names(tmp_path) == ["other", "set"]
    assert (tmp_path / "set" / "file").read_text() == "first"


def test_what_a_crash_of_the_machine_left_is_cleared(tmp_path):
    make(tmp_path / ".set.partial-1", "input/train.npy")
    make(tmp_path / ".set.previous-1", "file")
    with (
        pytest.raises(UserError, match="already exists"),
        new_directory(tmp_path / "set", overwrite=False),
    ):
        pytest.fail("began to prepare")
    assert names(tmp_path) == ["set"]  # the one before, as the new one had not its name yet
    assert names(tmp_path / "set") == ["file"]


# --- ends of the command in its midst


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("listops", signal.SIGINT),
        ("listops", signal.SIGTERM),
        ("listops", signal.SIGHUP),
        ("listops", signal.SIGKILL),
        ("pathfinder", signal.SIGKILL),
    ],
)
def test_an_interrupted_command_leaves_nothing(tmp_path, name, number):
    command = [sys.executable, "-m", "preprocess", name, "--out", str(tmp_path / "set")]
    process = subprocess.Popen(
        [*command, "--workers", "2"],
        stderr=subprocess.PIPE,
        start_new_session=True,
        # a shell that runs the tests in the background has SIGINT ignored, nohup SIGHUP
        preexec_fn=hear_signals,
    )
    deadline = time.monotonic() + 120
    workers = []
    while time.monotonic() < deadline and not (workers and list(tmp_path.glob(".set.partial-*/*"))):
        time.sleep(0.05)
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "preprocess" in child.cmdline()
        ]
    assert workers
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, err = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(started, 20)
    assert not alive
    assert not list(tmp_path.iterdir())
    assert b"Traceback" not in err
    if number != signal.SIGKILL:
        assert process.returncode == 130 and b"interrupted" in err


def test_nohup_is_heeded(tmp_path):
    code = (
        "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        "from preprocess.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "listops", "--out", str(tmp_path / "set")]
    process = subprocess.Popen([*command, "--workers", "2", "--limit", "2000"])
    while not list(tmp_path.glob(".set.partial-*/*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 0
    assert names(tmp_path) == ["set"]


def test_a_worker_that_is_killed_is_told(tmp_path):
    command = [sys.executable, "-m", "preprocess", "pathfinder", "--generate", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "set")], stderr=subprocess.PIPE, text=True
    )
    workers = []
    while len(workers) < 2:
        time.sleep(0.05)
        children = psutil.Process(process.pid).children()
        workers = [child for child in children if "preprocess" in child.cmdline()]
    workers[0].kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in err
    assert "error: one of the processes was killed" in err and "--workers" in err
    assert not list(tmp_path.iterdir())


# --- progress, numbers, terminals


def test_a_log_gets_a_line_now_and_then(monkeypatch, caplog, capsys):
    caplog.set_level("INFO")
    with progress(range(1000), "writing", unit=" images") as shown:
        assert list(shown) == list(range(1000))
    assert not caplog.text and capsys.readouterr().err == ""
    monkeypatch.setattr(progress_module, "SECONDS", 0)
    with progress(what="reading", total=4_000_000, unit="B", scale=True) as shown:
        shown.update(1_000_000)
    assert list(progress(iter("ab"), "counting", unit=" letters")) == ["a", "b"]
    assert caplog.messages == [
        "reading: 1.00MB of 4.00MB (25%)",
        "counting: 1 letters",
        "counting: 2 letters",
    ]


def test_a_terminal_gets_a_bar(tmp_path):
    command = [sys.executable, "-m", "preprocess", "listops", "--demo", "--out"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    subprocess.run([*command, str(tmp_path / "a")], stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # when all is read
        while piece := os.read(ours, 1 << 16):
            shown += piece
    assert b"\rgenerating" in shown
    answer = subprocess.run([*command, str(tmp_path / "b")], stderr=subprocess.PIPE, check=True)
    assert b"\r" not in answer.stderr and b"generating" not in answer.stderr


@pytest.mark.parametrize("name", ["listops", "imdb-4000", "aan", "cifar10", "pathfinder", "path-x"])
@pytest.mark.parametrize(
    "option",
    [f"--seed={seed}" for seed in ("-1", 1 << 32, "1.5", "x", "", "9" * 5000)]
    + [f"--workers={workers}" for workers in (0, -1, 10**6, "2.0")],
    ids=lambda option: option[:12],
)
def test_numbers_beyond_their_bounds_are_refused(name, option, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--demo", "--out", str(tmp_path / "set"), option])
    assert caught.value.code == 2
    assert "is no whole number from" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [0, (1 << 32) - 1])
def test_the_bounds_themselves_are_taken(seed, prepare):
    summary = json.loads(
        (prepare("listops", "--demo", "--seed", seed) / "summary.json").read_text()
    )
    assert summary["source"]["seed"] == seed


def test_a_set_is_verified(prepare, capsys, tmp_path):
    out = prepare("cifar10", "--demo", "--limit", 3)
    assert main(["verify", str(out)]) == 0
    assert f"{out}: 6 files are as they were prepared" in capsys.readouterr().out
    (out / "notes.txt").write_text("not part of it")
    assert main(["verify", str(out)]) == 0
    path = out / "input" / "valid.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["verify", str(out)]) == 1
    assert f"error: {path} is not what was prepared" in capsys.readouterr().err
    path.unlink()
    assert main(["verify", str(out)]) == 1
    assert f"error: {path} is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "summary",
    [None, "{", "[]", SUMMARY, SUMMARY.replace("{}}", '{}, "files": {"../x": "0"}}'), "pipe"],
)
def test_what_cannot_be_verified_is_told(tmp_path, summary, capsys):
    if summary == "pipe":
        os.mkfifo(tmp_path / "summary.json")
    elif summary is not None:
        (tmp_path / "summary.json").write_text(summary)
    assert main(["verify", str(tmp_path)]) == 1
    assert f"error: {tmp_path / 'summary.json'} " in capsys.readouterr().err
