"""Run a command that ends, with all that it started, when the one that asked for it does.

    supervise PARENT SIGNAL COMMAND [ARGUMENT ...]

A process that is killed cannot end those that it started. This one watches in its place: when the
process of number PARENT is gone, or when it is told to stop, it sends SIGNAL (INT or TERM) to the
command, which may tidy up for some seconds, and then kills what is left of its descendants. It is
in a session of its own, so that a signal to PARENT's group does not end it too.

Only the standard library is imported: the set-up runs under it.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# seconds that a command may take to tidy up
GRACE = 10
# seconds between two looks at the parent
PERIOD = 0.25
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ROOT = Path(__file__).resolve().parent.parent
# `python -c` looks for modules where it is called: there a torch.py could lie
LAUNCH = (
    "import sys; sys.path[0] = sys.argv.pop(1); "
    "from fairseq_csp.supervise import main; sys.exit(main(sys.argv[1:]))"
)


def supervised(command: Sequence[str], *, stop: str = "TERM") -> list[str]:
    """Return the command that runs another under the watch of this process.

    Args:
        command: what is to be run.
        stop: the signal that ends it, ``TERM`` or ``INT``.
    """
    return [sys.executable, "-c", LAUNCH, str(ROOT), str(os.getpid()), stop, *command]


def run(
    command: Sequence[str],
    *,
    stop: str = "TERM",
    cwd: Path | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> subprocess.CompletedProcess:
    """Run a command to its end; when this process ends earlier, for whatever reason, so does it.

    Args:
        command: what is to be run.
        stop: the signal that ends it, ``TERM`` or ``INT``.
        cwd: where it runs.
        stdout: as ``subprocess.Popen`` takes it.
        stderr: as ``subprocess.Popen`` takes it.

    Returns:
        Its exit status, the signal's number below zero where one killed it, and what it wrote.
    """
    process = subprocess.Popen(
        supervised(command, stop=stop), cwd=cwd, stdout=stdout, stderr=stderr, text=True
    )
    try:
        output, errors = process.communicate()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    status = process.returncode
    killed = 128 < status <= 128 + max(signal.valid_signals())
    return subprocess.CompletedProcess(command, 128 - status if killed else status, output, errors)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: the parent's process number, the signal, and the command.
    """
    parent, stop, *command = arguments
    # PARENT, or what it started this one by, as pyenv's scripts do
    started_by = os.getppid()
    told = []
    for number in STOPS:
        signal.signal(number, lambda number, frame: told.append(number))
    with contextlib.suppress(OSError):
        os.setsid()
    _adopt_orphans()
    try:
        child = subprocess.Popen(command, preexec_fn=_as_started_by_a_shell)
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be run ({error.strerror})\n")
        return 127
    while (
        child.poll() is None and not told and os.getppid() == started_by and _is_there(int(parent))
    ):
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(PERIOD)
    if child.poll() is None:
        child.send_signal(signal.Signals[f"SIG{stop}"])
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
    _kill_descendants()
    status = child.wait()
    return status if status >= 0 else 128 - status


def _is_there(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _as_started_by_a_shell() -> None:
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL)
    # should this process be killed itself
    set_parent_death_signal = 1
    _prctl(set_parent_death_signal, signal.SIGKILL)


def _adopt_orphans() -> None:
    """Have those whose parent ends become children of this process, so that they are found."""
    set_child_subreaper = 36
    _prctl(set_child_subreaper, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _kill_descendants() -> None:
    # again until there is none: one may start another meanwhile
    while found := descendants(os.getpid()):
        for number in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.01)


def descendants(ancestor: int) -> list[int]:
    """Return the processes below one that have not ended, the nearer ones first.

    Args:
        ancestor: its number.
    """
    children: dict[int, list[int]] = {}
    for number, parent in processes():
        children.setdefault(parent, []).append(number)
    found, below = [], [ancestor]
    while below:
        below = [child for number in below for child in children.get(number, [])]
        found += below
    return found


def processes() -> Iterator[tuple[int, int]]:
    """Yield the number of each process that has not ended, and its parent's."""
    if sys.platform == "linux":
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # number (name) state parent ...; the name may hold anything
                state, parent = file.read_text(errors="replace").rpartition(")")[2].split()[:2]
                if state != "Z":
                    yield int(file.parent.name), int(parent)
        return
    command = ["ps", "-A", "-o", "pid=,ppid=,stat="]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = [line.split() for line in process.communicate()[0].splitlines()]
    for number, parent, state in lines:
        if not state.startswith("Z") and int(number) != process.pid:
            yield int(number), int(parent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
