"""The library that lets MKL use AVX-512 on processors of AMD."""

import os
import shutil
import subprocess
import sys

import pytest

from fairseq_csp.ops import mkl
from tests.helpers.commands import ROOT

AMD = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f avx512dq\n"
PRODUCT = """
import ctypes, sys, torch
x = torch.randn(65, 700, generator=torch.Generator().manual_seed(0))
torch.save(x @ x.t(), sys.argv[1])
try:
    print(ctypes.CDLL(None).mkl_serv_intel_cpu_true())
except AttributeError:
    print("none")
"""

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler")


@pytest.fixture
def processor(tmp_path, monkeypatch):
    """An empty cache, and a function that says what ``/proc/cpuinfo`` is."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(mkl.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(mkl.sys, "platform", "linux")

    def have(text):
        monkeypatch.setattr(mkl.Path, "read_text", lambda self, **_: text)

    have(AMD)
    return have


@needs_compiler
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another loader")
def test_products_are_the_same(processor, tmp_path):
    torch = pytest.importorskip("torch")
    library = tmp_path / "cache" / "fairseq_csp" / "mkl.so"
    changes = mkl.environment()
    assert changes == {"LD_PRELOAD": str(library)}
    assert [path.name for path in library.parent.iterdir()] == ["mkl.so"]
    before = library.stat().st_mtime_ns
    assert mkl.environment() == changes and library.stat().st_mtime_ns == before

    answers = []
    for environment in ({}, changes):
        command = [sys.executable, "-c", PRODUCT, str(tmp_path / f"{len(answers)}.pt")]
        run = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=True
        )
        answers.append((run.stdout.strip(), torch.load(tmp_path / f"{len(answers)}.pt")))
        assert run.stderr == ""
    assert [answer for answer, _ in answers] == ["none", "1"]
    torch.testing.assert_close(answers[1][1], answers[0][1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        AMD.replace("AuthenticAMD", "GenuineIntel"),
        AMD.replace(" avx512f", ""),
        AMD.replace("avx512f avx512dq", "avx512fp16"),
        "",
    ],
    ids=["intel", "avx2", "another flag", "nothing known"],
)
def test_other_processors_are_left_alone(processor, text, tmp_path):
    processor(text)
    assert mkl.environment() == {}
    assert not (tmp_path / "cache").exists()


@needs_compiler
def test_what_is_preloaded_already_is_left_alone(processor, monkeypatch):
    for given in ("", "/lib/libmine.so"):
        monkeypatch.setenv("LD_PRELOAD", given)
        assert mkl.environment() == {}


def test_without_a_compiler_or_a_name_for_the_loader(processor, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert mkl.environment() == {}
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("CXX", "false")
    assert mkl.environment() == {}
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "my cache"))
    assert mkl.environment() == {}


def test_the_command_prints_the_path_or_nothing(tmp_path):
    command = [sys.executable, "-m", "fairseq_csp.ops.mkl"]
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    environment.pop("LD_PRELOAD", None)
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.strip() in ("", str(tmp_path / "fairseq_csp" / "mkl.so"))
