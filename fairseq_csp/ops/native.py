"""The CPU kernels in C++: built at first use, and kept in the user's cache.

All ``.cpp`` files beside the operators become one library. It is built under a file lock, so that
processes which start together build it once, and kept by what it depends on: the sources, the
version of PyTorch and the processor.
"""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch

from fairseq_csp.ops import cache

logger = logging.getLogger(__name__)

FLAGS = [
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
]
if sys.platform.startswith("linux"):
    # compiled for OpenMP, but not linked with it: PyTorch has its own, and with it the threads
    FLAGS.append("-fopenmp")


@lru_cache(maxsize=1)
def load() -> str | None:
    """Load the library, and build it where there is none yet.

    Returns:
        None, or in one line why there is no library.
    """
    try:
        library = cache.directory() / f"kernels-{_key()}.so"
        if not library.exists():
            _build(library)
        torch.ops.load_library(library)
    except (OSError, RuntimeError, ImportError) as error:
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    return None


def _sources() -> list[Path]:
    return sorted(Path(__file__).parent.rglob("*.cpp"))


def _headers() -> list[Path]:
    return sorted(Path(__file__).parent.rglob("*.h"))


def _key() -> str:
    digest = hashlib.sha256()
    for part in (torch.__version__, _processor(), *_flags()):
        digest.update(part.encode() + b"\0")
    for source in _sources() + _headers():
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _flags() -> list[str]:
    # how wide the vectors of PyTorch's headers are
    width = torch.backends.cpu.get_cpu_capability()
    vectors = [f"-DCPU_CAPABILITY={width}"]
    if width != "DEFAULT":
        vectors.append(f"-DCPU_CAPABILITY_{width}")
    return [*FLAGS, *vectors]


def _processor() -> str:
    """Return what the code for this processor, which is not for all of its kind, depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("model name", "flags", "CPU part", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))


def _build(library: Path) -> None:
    from torch.utils import cpp_extension

    if shutil.which(cpp_extension.get_cxx_compiler()) is None:
        raise RuntimeError(f"there is no C++ compiler named {cpp_extension.get_cxx_compiler()}")
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            return
        logger.info("building the CPU kernels, once: %s", library)
        start = time.monotonic()
        partial = library.with_suffix(".partial")
        # left behind by a process that was killed
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            with _ninja_of_this_environment():
                cpp_extension.load(
                    library.stem,
                    [str(source) for source in _sources()],
                    extra_cflags=_flags(),
                    build_directory=str(partial),
                    is_python_module=False,
                )
            os.replace(partial / f"{library.stem}.so", library)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        logger.info("built the CPU kernels in %.0f s", time.monotonic() - start)


@contextmanager
def _ninja_of_this_environment() -> Iterator[None]:
    """Let programs be found that lie beside the interpreter, where nobody activated it."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([before, os.path.dirname(sys.executable)])
    try:
        yield
    finally:
        os.environ["PATH"] = before
