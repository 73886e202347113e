"""What is told of the processor, beside what Linux tells of it."""

import platform
import re
from pathlib import Path

import pytest

from fairseq_csp.processor import has_bfloat16

VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


@pytest.fixture(autouse=True)
def unlimited(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of x86 instructions")
def test_as_linux_tells():
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    assert has_bfloat16() == bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", text))


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("limit", ["AVX2", "avx512_core"])
def test_onednn_can_be_limited(monkeypatch, name, limit):
    monkeypatch.setenv(name, limit)
    assert not has_bfloat16()


@pytest.mark.parametrize("limit", ["AVX512_CORE_AMX", "DEFAULT"])
def test_a_limit_above_changes_nothing(monkeypatch, limit):
    before = has_bfloat16()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert has_bfloat16() == before
