"""Entries whose cost does not grow with the square of the length, on the longest task's rows."""

import re
import sys

import pytest

from tests.helpers.commands import succeed
from tests.mixers.entries import EVERY_CASE, QUADRATIC

POSITIONS, CHANNELS = 16_384, 128
MOST = 4 << 30
CODE = f"""
import resource, sys, torch
from fairseq_csp import build_attention
torch.set_num_threads(1)
torch.manual_seed(0)
grid = (128, 128) if sys.argv[2] == "image" else None
sizes = dict(value_dim={CHANNELS}, max_positions={POSITIONS}, grid=grid)
module = build_attention(sys.argv[1], **sizes)
inputs = [
    torch.randn(1, {POSITIONS}, {CHANNELS}, requires_grad=True)
    for _ in range(1 + 2 * module.uses_queries)
]
out = module(inputs[0], None, *inputs[1:])
out.square().sum().backward()
assert all(x.grad.isfinite().all() for x in inputs)
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
"""


KINDS = {
    (case.name, "image" if case.grid else "text")
    for case in EVERY_CASE
    if case.name not in QUADRATIC
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), sorted(KINDS))
def test_long_rows(name, kind):
    peak = int(re.search(r"peak (\d+)", succeed(sys.executable, "-c", CODE, name, kind)).group(1))
    assert peak < MOST, f"{peak / 2**30:.2f} GB"
