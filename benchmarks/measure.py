"""In a measuring process: the time and the peak memory of a call, inside a memory limit. Linux."""

import ctypes
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

GIGABYTE = 1 << 30
MOST_ROUNDS = 100
LIBC = ctypes.CDLL(None)
# numbers of mallopt's options
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
# what the messages of allocators say
FULL = ("out of memory", "allocate memory", "bad_alloc", "insufficient memory")


class Machine:
    """The device that calls are measured on, and its memory limit.

    Args:
        device: ``cpu``, ``cuda``, or ``auto``: a GPU where there is one.
        threads: threads of the CPU.
        memory: gigabytes that may be taken from the CPU's memory. A GPU's own size is its limit.
    """

    def __init__(self, device: str, threads: int, memory: float) -> None:
        torch.set_num_threads(threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        # what is freed goes back to the system at once, so that memory in use is all that counts
        LIBC.mallopt(M_MMAP_THRESHOLD, 1 << 16)
        self.gigabytes = memory
        self.name = "CPU"
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            self.gigabytes = properties.total_memory / GIGABYTE
            self.name = properties.name

    def limit_memory(self) -> None:
        """Let allocations fail, from now on, that would take more than the limit."""
        if self.device.type == "cpu":
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + round(self.gigabytes * GIGABYTE)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def peak_bytes(self, call: Callable[[], object], clear: Callable[[], object]) -> int:
        """Return the most memory that a call takes beyond what is in use before it.

        To be asked once, before anything is timed.

        Args:
            call: made twice: libraries are loaded, and their caches filled, at the first use.
            clear: releases what a call leaves behind.
        """
        call()
        clear()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            call()
            return torch.cuda.max_memory_allocated(self.device) - before
        LIBC.malloc_trim(0)
        # getrusage's ru_maxrss cannot be set back, and begins with the parent process's
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS:")
        call()
        peak = _resident("VmHWM:")
        keep_freed_memory()
        return peak - before

    def seconds(self, call: Callable[[], object]) -> float:
        """Time one call, the device's work included."""
        self._synchronize()
        start = time.perf_counter()
        call()
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def keep_freed_memory() -> None:
    """Let freed memory be kept for the next tensor, as train_lra.sh trains."""
    LIBC.mallopt(M_MMAP_MAX, 0)
    LIBC.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def best_times(machine: Machine, calls: list[Callable[[], object]], budget: float) -> list[float]:
    """Return the shortest time of each call, made alternately.

    Args:
        machine: where they run.
        calls: what to time.
        budget: seconds after which no more rounds are begun.
    """
    return [min(times) for times in all_times(machine, calls, budget)]


def all_times(
    machine: Machine, calls: list[Callable[[], object]], budget: float
) -> list[tuple[float, ...]]:
    """Return every time of each call, made alternately.

    Args:
        machine: where they run.
        calls: what to time.
        budget: seconds after which no more rounds are begun.
    """
    rounds: list[list[float]] = []
    while not rounds or (sum(map(sum, rounds)) < budget and len(rounds) < MOST_ROUNDS):
        rounds.append([machine.seconds(call) for call in calls])
    return list(zip(*rounds, strict=True))


def serve(measurement: Callable[[Machine, dict], dict]) -> None:
    """Make the measurement that this process's one argument describes, and print it.

    Args:
        measurement: takes the machine and the description; returns what was measured.
    """
    spec = json.loads(sys.argv[1])
    machine = Machine(spec.pop("device"), spec.pop("threads"), spec.pop("memory"))
    try:
        answer = measurement(machine, spec)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in FULL):
            raise
        answer = {"problem": f"does not fit in {machine.gigabytes:.3g} GB"}
    sys.stdout.write(json.dumps(answer | {"device": machine.name}) + "\n")


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(field)[2].split()[0])
