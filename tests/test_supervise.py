"""Whatever train_lra.sh started ends with it, however it ends."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from fairseq_csp import supervise
from tests.helpers.commands import ENVIRONMENT, ROOT, hear_signals

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
# seconds until everything must be gone
LIMIT = 20
# a command with a worker that does not hear of its end, and an orphan in a session of its own
FAMILY = """
import os, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
workers = [subprocess.Popen([sys.executable, "-c", deaf, sys.argv[1]])]
if not os.fork():
    workers += [subprocess.Popen([sys.executable, "-c", deaf, sys.argv[1]], start_new_session=True)]
    os._exit(0)
open(sys.argv[1], "w").close()
try:
    time.sleep(600)
finally:
    os.remove(sys.argv[1])
"""
PARENT = """
import sys
from fairseq_csp import supervise
supervise.run([sys.executable, "-c", sys.argv[1], sys.argv[2]], stop="INT")
"""


def processes(mark):
    """Those that have a text among their arguments."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        arguments = process.info["cmdline"] or []
        if any(mark in argument for argument in arguments) and process.info["status"] != "zombie":
            found.append(process)
    return found


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("whole_group", [False, True], ids=["process", "group"])
def test_nothing_is_left(tmp_path, number, whole_group):
    mark = str(tmp_path / "running")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, FAMILY, mark],
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        preexec_fn=hear_signals,
    )
    wait_until(lambda: os.path.exists(mark) and len(processes(mark)) >= 5, 60)
    (os.killpg if whole_group else os.kill)(parent.pid, number)
    parent.wait(LIMIT)
    wait_until(lambda: not processes(mark), LIMIT)
    # it could tidy up
    assert not os.path.exists(mark)


def test_what_a_command_left_running_ends_with_it(tmp_path):
    mark = str(tmp_path / "mark")
    code = "import subprocess, sys; subprocess.Popen(['sleep', '600', sys.argv[1]][:2])"
    answer = supervise.run([sys.executable, "-c", code, mark], stdout=subprocess.PIPE)
    assert (answer.returncode, answer.stdout) == (0, "")


def test_status_and_output_are_the_command_s(tmp_path):
    code = "import os, sys; print(os.getcwd()); sys.stderr.write('told'); sys.exit(7)"
    answer = supervise.run(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (7, f"{tmp_path}\n", "told")
    kill = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert supervise.run(kill).returncode == -9
    missing = supervise.run(["/no/such/command"], stderr=subprocess.PIPE)
    assert missing.returncode == 127
    assert missing.stderr == "/no/such/command cannot be run (No such file or directory)\n"


def test_processes_are_found_without_proc(monkeypatch):
    child = subprocess.Popen(["sleep", "600"])
    try:
        monkeypatch.setattr(supervise.sys, "platform", "darwin")
        assert (child.pid, os.getpid()) in set(supervise.processes())
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_set_up_ends_with_its_shell(tmp_path, number):
    mark = str(tmp_path / "running")
    script = f'. "{ROOT}/environment.sh"; supervised "$@"; echo "ended with $?"'
    shell = subprocess.Popen(
        ["bash", "-c", script, "bash", sys.executable, "-c", FAMILY, mark],
        env={**ENVIRONMENT, "ROOT": str(ROOT)},
        stderr=subprocess.DEVNULL,
        preexec_fn=hear_signals,
    )
    wait_until(lambda: os.path.exists(mark), 60)
    shell.send_signal(number)
    shell.wait(LIMIT)
    wait_until(lambda: not processes(mark), LIMIT)
    assert not os.path.exists(mark)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_a_preparation_ends_with_train_lra(tmp_path, number):
    data = tmp_path / "listops"
    command = ["bash", ROOT / "train_lra.sh", "model_name=mega", "dataset_name=listops"]
    shell = subprocess.Popen(
        [*command, f"data_dir={data}", f"save_dir={tmp_path / 'run'}"],
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
        preexec_fn=hear_signals,
    )
    wait_until(lambda: list(tmp_path.glob(".listops.partial-*")), 120)
    shell.send_signal(number)
    shell.wait(LIMIT)
    wait_until(lambda: not processes(str(tmp_path)), LIMIT)
    assert not list(tmp_path.iterdir())


def test_another_process_may_stand_between(tmp_path):
    """pyenv's python3 is a script that starts the interpreter, and does not always become it."""
    code = "import time; time.sleep(1); raise SystemExit(3)"
    between = ["bash", "-c", '"$@"; exit $?', "bash"]
    answer = subprocess.run([*between, *supervise.supervised([sys.executable, "-c", code])])
    assert answer.returncode == 3
