"""Linear maps over the channels against ``nn.functional.linear``."""

import pytest
import torch
import torch.nn.functional as F

from fairseq_csp.ops.linear import linear, linear_split, silu_linear

pytestmark = pytest.mark.usefixtures("every_implementation")


@pytest.mark.parametrize("sizes", [(7,), (3, 4), (2, 0, 5), (1, 2, 3, 1)], ids=str)
def test_equal_torch_in_value_and_gradient(sizes):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, incoming = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((2, 5, 6), (7, 5), (7,), (2, 7, 6))
    )
    expected = F.linear(x.transpose(1, 2), weight, bias).transpose(1, 2)
    parts = linear_split(x, weight, bias, sizes)
    assert tuple(part.size(1) for part in parts) == sizes
    gradient = torch.autograd.grad(expected, (x, weight, bias), incoming)
    for ours in (torch.cat(parts, dim=1), linear(x, weight, bias)):
        assert torch.allclose(ours, expected, atol=1e-12)
        for our, their in zip(
            torch.autograd.grad(ours, (x, weight, bias), incoming), gradient, strict=True
        ):
            assert torch.allclose(our, their, atol=1e-12)


@pytest.mark.parametrize("gated", [False, True])
def test_silu_linear_equals_its_parts(gated):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, incoming, factor = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((2, 5, 6), (7, 5), (7,), (2, 7, 6), (2, 5, 6))
    )
    inputs = (x, weight, bias, factor) if gated else (x, weight, bias)
    hidden = F.silu(x) * factor if gated else F.silu(x)
    expected = F.linear(hidden.transpose(1, 2), weight, bias).transpose(1, 2)
    ours = silu_linear(*inputs)
    assert torch.allclose(ours, expected, atol=1e-12)
    for our, their in zip(
        torch.autograd.grad(ours, inputs, incoming),
        torch.autograd.grad(expected, inputs, incoming),
        strict=True,
    ):
        assert torch.allclose(our, their, atol=1e-12)


def test_autocast():
    x, weight, bias = torch.randn(2, 5, 6), torch.randn(4, 5), torch.randn(4)
    leaves = [value.requires_grad_() for value in (x, weight, bias)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = linear_split(*leaves, (1, 3))
        gated = silu_linear(*leaves, torch.randn(2, 5, 6))
    assert {part.dtype for part in (*parts, gated)} == {torch.bfloat16}
    loss = parts[1].float().sum() + gated.float().sum()
    gradients = torch.autograd.grad(loss, leaves)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
