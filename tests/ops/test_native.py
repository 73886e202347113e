"""Building the CPU kernels, and what happens where they cannot be built."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fairseq_csp.errors import UserError
from fairseq_csp.ops import kernels, native

CPU = torch.device("cpu")

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler")


@pytest.fixture
def no_library(tmp_path, monkeypatch):
    """An empty cache, and a process that has not tried yet."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for function in (native.load, kernels._native):
        function.cache_clear()
    yield tmp_path
    for function in (native.load, kernels._native):
        function.cache_clear()


def test_without_a_compiler_the_reference_is_used_and_one_line_is_logged(
    no_library, monkeypatch, caplog
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("FAIRSEQ_CSP_KERNELS", "auto")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert kernels.implementation(CPU) == "reference"
    assert [record.getMessage() for record in caplog.records] == [
        "no CPU kernels, PyTorch's own operators instead: "
        "there is no C++ compiler named no-such-compiler"
    ]
    monkeypatch.setenv("FAIRSEQ_CSP_KERNELS", "native")
    with pytest.raises(UserError, match="is native, but .* no-such-compiler"):
        kernels.implementation(CPU)


def test_a_cache_that_cannot_be_written(no_library, monkeypatch):
    (no_library / "fairseq_csp").write_text("a file where the directory belongs")
    monkeypatch.setenv("FAIRSEQ_CSP_KERNELS", "auto")
    assert "fairseq_csp" in native.load()
    assert kernels.implementation(CPU) == "reference"


@needs_compiler
def test_a_compiler_that_fails(no_library, monkeypatch):
    (no_library / "broken.cpp").write_text("this is no C++")
    monkeypatch.setattr(native, "_sources", lambda: [no_library / "broken.cpp"])
    assert "rror building extension" in native.load()
    assert not list((no_library / "fairseq_csp").glob("*.partial"))


def test_what_is_used_where(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: None)
    monkeypatch.setattr(kernels, "_native", lambda choice: True)
    for choice, expected in (
        ("auto", "native"),
        ("native", "native"),
        ("reference", "reference"),
        ("triton", "reference"),
        ("", "native"),
    ):
        monkeypatch.setenv("FAIRSEQ_CSP_KERNELS", choice)
        assert kernels.implementation(CPU) == expected
    monkeypatch.setenv("FAIRSEQ_CSP_KERNELS", "fast")
    with pytest.raises(
        UserError, match="'fast'; it must be one of auto, reference, native, triton"
    ):
        kernels.implementation(CPU)


BUILD = """
import sys, pathlib
from fairseq_csp.ops import native
native._sources = lambda: [pathlib.Path(sys.argv[1])]
problem = native.load()
assert problem is None, problem
"""


@needs_compiler
def test_processes_that_start_together_build_once(tmp_path):
    source, log, compiler = (tmp_path / name for name in ("one.cpp", "log", "compiler"))
    source.write_text('extern "C" int one() { return 1; }\n')
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    cache = tmp_path / "cache"
    environment = os.environ | {"CXX": str(compiler), "TORCH_EXTENSIONS_DIR": str(cache)}
    command = [sys.executable, "-c", BUILD, str(source)]

    def run_together():
        root = Path(__file__).parents[2]
        processes = [subprocess.Popen(command, env=environment, cwd=root) for _ in range(2)]
        assert [process.wait() for process in processes] == [0, 0]
        return sum(" -c " in f" {line} " for line in log.read_text().splitlines())

    assert run_together() == 1
    (library,) = (cache / "fairseq_csp").glob("*.so")
    assert run_together() == 1
    # a process was killed while it built
    library.unlink()
    library.with_suffix(".partial").mkdir()
    (library.with_suffix(".partial") / "lock").touch()
    assert run_together() == 2
    assert sorted(path.suffix for path in library.parent.iterdir()) == [".lock", ".so"]
