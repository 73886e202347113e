"""The Triton kernels by Triton's interpreter, and compiled for GPUs that need not be there."""

import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from fairseq_csp.errors import UserError
from fairseq_csp.ops import kernels, native
from fairseq_csp.ops.csp import eager
from fairseq_csp.ops.csp.operators import csp_shifts
from fairseq_csp.ops.dropout import draw_seed
from tests.helpers.kernels import GATES, INTERPRETED

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def run(arguments, **variables):
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, *arguments]
    environment = os.environ | variables
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


if not INTERPRETED:

    def test_interpreted():
        run(["-m", "pytest", "-q", __file__], TRITON_INTERPRET="1")

    @pytest.mark.slow
    def test_all_that_holds_for_operators_interpreted():
        files = [f"tests/ops/test_{name}.py" for name in ("csp", "gates", "linear", "norms")]
        run(["-m", "pytest", "-q", *files], TRITON_INTERPRET="1")

    def test_compiled_for_a_gpu(tmp_path):
        code = Path(__file__).with_name("compile_triton.py")
        out = run(
            [code, "80", "fp32", "bf16"], TRITON_CACHE_DIR=str(tmp_path), PYTHONPATH=str(ROOT)
        )
        assert out.split() == ["64", "kernels"]

    def test_what_is_used_on_a_gpu(monkeypatch):
        monkeypatch.setattr(kernels, "_triton", lambda choice: True)
        for choice, expected in (
            ("auto", "triton"),
            ("triton", "triton"),
            ("native", "reference"),
            ("reference", "reference"),
        ):
            monkeypatch.setenv("FAIRSEQ_CSP_KERNELS", choice)
            assert kernels.implementation(CUDA) == expected

    def test_without_triton(monkeypatch, caplog):
        def missing(name):
            raise ImportError("No module named 'triton'")

        kernels._triton.cache_clear()
        monkeypatch.setattr(kernels, "import_module", missing)
        monkeypatch.setenv("FAIRSEQ_CSP_KERNELS", "auto")
        assert [kernels.implementation(CUDA) for _ in range(2)] == ["reference"] * 2
        assert [record.getMessage() for record in caplog.records] == [
            "no Triton, PyTorch's own operators instead: No module named 'triton'"
        ]
        monkeypatch.setenv("FAIRSEQ_CSP_KERNELS", "triton")
        with pytest.raises(UserError, match="is triton, but it cannot be loaded: No module"):
            kernels.implementation(CUDA)
        kernels._triton.cache_clear()

else:
    from fairseq_csp.ops.csp import triton_kernels

    def same(a, b):
        """Bit for bit, NaN in the same places; 0 and -0 differ."""
        return (
            torch.equal(a.isnan(), b.isnan())
            and torch.equal(a.nan_to_num(), b.nan_to_num())
            and torch.equal(a.nan_to_num().signbit(), b.nan_to_num().signbit())
        )

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(
        ("positions", "lengths"),
        [(1, None), (7, [7, 2]), (16, [15, 0]), (33, None), (33, [32, 33]), (1100, [1025, 1])],
        ids=str,
    )
    def test_csp_equals_the_reference(positions, lengths, dtype):
        """Ragged and odd lengths, none, ties, NaN; more positions than a program has."""
        generator = torch.Generator().manual_seed(positions)
        x = (torch.randn(2, 3, positions, generator=generator) * 2).round().div(2).to(dtype)
        x[0, 0, positions // 2] = x[1, 1, 0] = math.nan
        grad = torch.randn(2, 3, positions, generator=generator).to(dtype)
        # every second channel of a larger tensor
        x = x.repeat_interleave(2, 1)[:, ::2]
        lengths = None if lengths is None else torch.tensor(lengths)
        counts = torch.tensor([positions]) if lengths is None else lengths
        for group, first, descending in product((1, 2), (True, False), (True, False)):
            group = min(group, positions)
            shifts = csp_shifts(counts, positions, 3, 1, 2, "exponential", group)
            arguments = (lengths, shifts, group, first)
            ours, kept = triton_kernels.permute(x, *arguments, descending)
            expected, kept_by_it = eager.permute(x, *arguments, descending)
            assert same(ours, expected)
            # a bit a pair
            assert kept.size(2) == (-(-positions // 16) if group == 2 else 0)
            undone = triton_kernels.restore(grad, lengths, shifts, kept, group, first)
            assert same(undone, eager.restore(grad, lengths, shifts, kept_by_it, group, first))

    @pytest.mark.parametrize("shape", [(2, 3, 5), (3, 2, 200), (1, 1, 1100)], ids=str)
    @pytest.mark.parametrize("name", GATES)
    def test_gates_equal_those_in_cpp(name, shape):
        """In what is dropped bit for bit, for the processor's own rounding otherwise."""
        if native.load() is not None:
            pytest.skip("there is no compiler")
        assert kernels._triton("triton")
        for dtype, p in product((torch.float32, torch.bfloat16), (0.0, 0.3, 1.0)):
            inputs = [(torch.randn(shape) * 3).to(dtype) for _ in range(GATES[name])]
            drawn = () if "product" in name else (p, draw_seed())
            found, expected = (
                getattr(namespace, name)(*inputs, *drawn)
                for namespace in (torch.ops.fairseq_csp_triton, torch.ops.fairseq_csp_native)
            )
            torch.testing.assert_close(found, expected)
            if name in ("dropout", "silu_dropout"):
                assert torch.equal(found == 0, expected == 0)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_gates_in_every_dtype(dtype, monkeypatch):
        from fairseq_csp.ops.gates import gated_residual

        monkeypatch.setenv("FAIRSEQ_CSP_KERNELS", "triton")
        inputs = [torch.randn(2, 3, 70).to(dtype).requires_grad_() for _ in range(4)]
        found = gated_residual(*inputs, 0.0, training=True)
        residual, update, direct, mixed = (x.double() for x in inputs)
        candidate = torch.nn.functional.silu(direct + mixed)
        expected = torch.lerp(residual, candidate, update.sigmoid())
        tolerance = {} if dtype.itemsize > 2 else {"rtol": 0.02, "atol": 0.02}
        torch.testing.assert_close(found, expected.to(dtype), **tolerance)
        torch.testing.assert_close(
            torch.autograd.grad(found.sum(), inputs),
            torch.autograd.grad(expected.sum(), inputs),
            **tolerance,
        )

    @pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 70), (3, 130, 9)], ids=str)
    @pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
    def test_norms_equal_those_in_cpp(dtype, shape):
        """Layer norm and RMS norm, one weight or one a channel, of a part of a larger tensor."""
        if native.load() is not None:
            pytest.skip("there is no compiler")
        assert kernels._triton("triton")
        batch, channels, positions = shape
        x, grad = torch.randn(2, batch, 2 * channels, positions).to(dtype)[:, :, channels:]
        close = {} if dtype.itemsize == 2 else {"rtol": 1e-5, "atol": 1e-5}
        for weights, centred in ((1, False), (channels, False), (channels, True)):
            weight, bias = torch.randn(2, weights).to(dtype)
            results = []
            for namespace in (torch.ops.fairseq_csp_triton, torch.ops.fairseq_csp_native):
                out, mean, inverse = namespace.norm(x, weight, bias if centred else None, 1e-5)
                backward = namespace.norm_backward(grad, x, weight, mean, inverse)
                results.append([out, mean, inverse, *backward[: 2 + centred]])
            for ours, expected in zip(*results, strict=True):
                assert ours.dtype == expected.dtype
                torch.testing.assert_close(ours, expected, **close)
