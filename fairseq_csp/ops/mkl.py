"""MKL's matrix products with all instructions of an AMD processor.

PyTorch's wheels for x86-64 contain MKL, which asks for the vendor of the processor and leaves
AVX-512 alone where that is not Intel. A library that is loaded before it can answer in its place.
It is compiled at first use, loaded into whatever ``train_lra.sh`` starts, and by

    export LD_PRELOAD=$(python -m fairseq_csp.ops.mkl)

into a command of your own. Where LD_PRELOAD is set already, be it empty, it is left alone. Nothing
is changed on other processors, and where there is no compiler.
"""

import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from fairseq_csp.ops import cache

# MKL's question, as its symbol is called
SOURCE = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"
VARIABLE = "LD_PRELOAD"


def environment() -> dict[str, str]:
    """Return what the environment of a process needs beside that of this one."""
    if VARIABLE in os.environ:
        return {}
    library = _library()
    return {VARIABLE: library} if library else {}


def _library() -> str | None:
    """Return the path of the library, compiled where it is not there; None where it is no use."""
    if not (sys.platform.startswith("linux") and platform.machine() == "x86_64"):
        return None
    path = cache.directory() / "mkl.so"
    # the loader takes either for the end of a name
    if not _is_held_back() or re.search(r"[\s:]", str(path)):
        return None
    try:
        if not path.exists():
            _compile(path)
    except (OSError, subprocess.CalledProcessError):
        return None
    return str(path)


def _is_held_back() -> bool:
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    flags = re.search(r"^flags\s*:(.*)$", processor, re.MULTILINE)
    return "AuthenticAMD" in processor and flags is not None and "avx512f" in flags[1].split()


def _compile(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CXX", "c++")
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        made = Path(directory) / path.name
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-x", "c", "-o", str(made), "-"],
            input=SOURCE,
            text=True,
            capture_output=True,
            check=True,
        )
        # at once, so that processes which start together see all of it or nothing
        os.replace(made, path)


if __name__ == "__main__":
    sys.stdout.write(f"{_library() or ''}\n")
