"""What the processor can: whether it has instructions for bfloat16."""

import os
import platform

import torch

# what oneDNN may be limited to by its environment variable that has no products of bfloat16
_WITHOUT_BFLOAT16 = frozenset(
    ["SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"]
)


def has_bfloat16() -> bool:
    """Tell whether this processor multiplies bfloat16 numbers by instructions of its own.

    On x86 these are avx512_bf16 or amx_bf16. ``ONEDNN_MAX_CPU_ISA`` is honoured: a processor whose
    instructions oneDNN must not use counts as one without them. Without them a step in bfloat16
    takes many times as long as one in float32, and some layers cannot be computed at all.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    if limit.upper() in _WITHOUT_BFLOAT16:
        return False
    if platform.machine().lower() in ("x86_64", "amd64", "i386", "i686"):
        return _x86_has_bfloat16()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _x86_has_bfloat16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    # torch before 2.11; each processor with amx_bf16 has avx512_bf16 as well
    return torch.cpu._is_avx512_bf16_supported()
