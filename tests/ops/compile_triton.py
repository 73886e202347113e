"""Compile the Triton kernels: python compile_triton.py CAPABILITY TYPE..., without a GPU."""

import sys
from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fairseq_csp.ops.csp.triton_kernels import _permute_kernel
from fairseq_csp.ops.gates.triton_kernels import _kernel
from fairseq_csp.ops.norms.triton_kernels import _norm_backward_kernel, _norm_kernel

GATES = [
    *("silu_product", "silu_product_backward", "silu_dropout", "silu_dropout_backward"),
    *("dropout", "dropout_add", "gated_residual", "gated_residual_backward"),
]
CSP = {"lengths": "*i64", "shifts": "*i32", "kept": "*u8"}


def compiled(kernel, types, constants):
    signature = types | dict.fromkeys(constants, "constexpr")
    signature = {name: signature.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    assert triton.compile(source, target=target).asm["cubin"]


count = 0
for kind in sys.argv[2:]:
    names = [name for name in _kernel.arg_names if name.startswith(("in", "out"))]
    types = dict.fromkeys(names, f"*{kind}") | {"scale": "fp32", "seed": "i64", "levels": "i64"}
    for function in GATES:
        constants = {"function": function, "ACTIVE": True, "BLOCK": 1024}
        compiled(_kernel, types, constants | {"SEED_STORED": False})
        compiled(_kernel, types | {"seed": "*i64"}, constants | {"SEED_STORED": True})
        count += 2
    types = CSP | {"source": f"*{kind}", "target": f"*{kind}"}
    keys = ("HAS_LENGTHS", "SHIFT_READ", "SORT", "DESCENDING", "UNDO")
    for sort, undo, read in product((True, False), repeat=3):
        constants = dict(zip(keys, (True, read, sort, False, undo), strict=True))
        compiled(_permute_kernel, types, constants | {"PAIRS": 512})
        count += 1
    statistics = dict.fromkeys(("mean", "inverse", "weights", "biases"), "*fp32")
    for centred, one in product((True, False), repeat=2):
        constants = {"CENTRED": centred, "ONE_WEIGHT": one, "SIZE": 128, "SPAN": 64}
        for kernel in (_norm_kernel, _norm_backward_kernel):
            names = ("x", "grad", "weight", "bias", "out", "grad_x")
            types = dict.fromkeys(names, f"*{kind}") | statistics | {"eps": "fp32"}
            given = {name: types[name] for name in kernel.arg_names if name in types}
            compiled(kernel, given, constants)
            count += 1
sys.stdout.write(f"{count} kernels\n")
