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
import shutil
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
    library = _library() if is_held_back() else None
    return {VARIABLE: library} if library else {}


def is_held_back() -> bool:
    """Tell whether MKL does not use all of this processor's instructions, and this can be mended.

    It is so where the processor is one of AMD with AVX-512, LD_PRELOAD is not set and there is a
    compiler.
    """
    mendable = VARIABLE not in os.environ and shutil.which(_compiler()) is not None
    return mendable and _concerns_processor()


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def _library() -> str | None:
    """Return the path of the library, compiled where it is not there; None without a compiler."""
    path = cache.directory() / "mkl.so"
    # the loader takes either for the end of a name
    if re.search(r"[\s:]", str(path)):
        return None
    try:
        if not path.exists():
            _compile(path)
    except (OSError, subprocess.CalledProcessError):
        return None
    return str(path)


def _concerns_processor() -> bool:
    if not (sys.platform.startswith("linux") and platform.machine() == "x86_64"):
        return False
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    flags = re.search(r"^flags\s*:(.*)$", processor, re.MULTILINE)
    return "AuthenticAMD" in processor and flags is not None and "avx512f" in flags[1].split()


def _compile(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        made = Path(directory) / path.name
        subprocess.run(
            [_compiler(), "-shared", "-fPIC", "-x", "c", "-o", str(made), "-"],
            input=SOURCE,
            text=True,
            capture_output=True,
            check=True,
        )
        # at once, so that processes which start together see all of it or nothing
        os.replace(made, path)


if __name__ == "__main__":
    sys.stdout.write(f"{(_library() if _concerns_processor() else None) or ''}\n")
