"""Device "cuda" for fake tensors, on a build of PyTorch without CUDA.

As a program it builds the library, once, and writes its path; a process that is to have the device
calls :func:`load` with that path before it imports torch.
"""

import ctypes
import importlib.util
import sys
import warnings
from pathlib import Path

NAME = "fairseq_csp_fake_cuda"


def load(library: str) -> None:
    """Load the library, before ``import torch`` asks for the hooks that are in it."""
    folder = Path(importlib.util.find_spec("torch").origin).parent / "lib"
    for name in ("libc10.so", "libtorch_cpu.so", "libtorch.so", "libtorch_python.so"):
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(library)


def prepare() -> None:
    """Let autocast of this device be switched on, and what PyTorch asks a driver be answered."""
    import torch

    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    # it notes that there is no cuDNN
    warnings.filterwarnings("ignore", message="PyTorch was compiled without cuDNN")
    # so that what runs in the backward pass has the frames of its caller
    torch.autograd.set_multithreading_enabled(False)


def build() -> Path:
    """Return the path of the library, built where there is none of these sources."""
    from torch.utils import cpp_extension

    source = Path(__file__).with_name("device.cpp")
    cpp_extension.load(NAME, [str(source)], is_python_module=False)
    return Path(cpp_extension._get_build_directory(NAME, verbose=False)) / f"{NAME}.so"


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
