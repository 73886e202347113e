"""Activations and gates with their dropout against the formulas, over every implementation."""

import pytest
import torch
import torch.nn.functional as F

from fairseq_csp.ops import gates, kernels
from fairseq_csp.ops.dropout import dropout
from fairseq_csp.ops.gates import dropout_add, gated_residual, silu_dropout
from fairseq_csp.ops.linear import silu_linear

pytestmark = pytest.mark.usefixtures("every_implementation")

# blocks of 64 numbers, and what is left of them
SHAPES = [(2, 3, 5), (1, 2, 64), (3, 4, 200)]


def draw(count, shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    numbers = [torch.randn(shape, generator=generator) * 3 for _ in range(count)]
    return [number.to(dtype).requires_grad_() for number in numbers]


FORMULAS = {
    silu_dropout: lambda kept, x: kept * F.silu(x),
    dropout_add: lambda kept, x, residual: kept * x + residual,
    gated_residual: lambda kept, residual, update, direct, mixed: torch.lerp(
        residual, kept * F.silu(direct + mixed), torch.sigmoid(update)
    ),
}
INPUTS = {silu_dropout: 1, dropout_add: 2, gated_residual: 4}


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("function", FORMULAS, ids=lambda function: function.__name__)
def test_equals_its_formula(function, shape, dtype, p):
    """In value and gradients, with the numbers that dropout by itself would keep."""
    values = draw(INPUTS[function], shape, dtype)
    torch.manual_seed(5)
    kept = dropout(torch.ones(shape, dtype=dtype), p, training=True)
    torch.manual_seed(5)
    found = function(*values, p, training=True)
    expected = FORMULAS[function](kept.double(), *(value.double() for value in values))
    assert found.dtype == dtype
    tolerance = {"rtol": 5e-2, "atol": 6e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found, expected.to(dtype), **tolerance)
    incoming = torch.randn(shape).to(dtype)
    torch.testing.assert_close(
        torch.autograd.grad(found, values, incoming),
        torch.autograd.grad(expected, values, incoming.double()),
        **tolerance,
    )


@pytest.mark.parametrize("function", FORMULAS, ids=lambda function: function.__name__)
def test_nothing_is_dropped_in_evaluation(function):
    values = draw(INPUTS[function], (2, 3, 70))
    expected = FORMULAS[function](1.0, *values)
    torch.testing.assert_close(function(*values, 0.5, training=False), expected)


@pytest.mark.parametrize("function", FORMULAS, ids=lambda function: function.__name__)
def test_views_and_expanded_gradients(function):
    """Parts of a tensor, as ``linear_split`` gives them, and the gradient of a sum."""
    whole = draw(1, (2, 3 * INPUTS[function], 70))[0]
    parts = whole.split(3, dim=1)
    gradients = []
    for inputs in (parts, [part.contiguous() for part in parts]):
        torch.manual_seed(2)
        out = function(*inputs, 0.4, training=True)
        gradients.append((out.detach(), *torch.autograd.grad(out.sum(), whole)))
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("function", FORMULAS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_no_probability(function, p):
    with pytest.raises(ValueError, match=f"dropout probability is {p}"):
        function(*draw(INPUTS[function], (2, 3, 4)), p, training=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gated_product_in_front_of_a_linear_map(shape, dtype):
    x, factor = draw(2, shape, dtype)
    weight, bias = (
        value.to(dtype).requires_grad_() for value in (torch.randn(4, shape[1]), torch.randn(4))
    )
    inputs = (x, weight, bias, factor)
    wide = [value.double() for value in inputs]
    hidden = F.silu(wide[0]) * wide[3]
    expected = F.linear(hidden.transpose(1, 2), wide[1], wide[2]).transpose(1, 2)
    found = silu_linear(*inputs)
    tolerance = (
        {"rtol": 5e-2, "atol": 0.3} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    )
    torch.testing.assert_close(found, expected.to(dtype), **tolerance)
    incoming = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, incoming),
        torch.autograd.grad(expected, inputs, incoming.double()),
        **tolerance,
    )


def test_extreme_numbers(every_implementation):
    x = torch.tensor([[[-torch.inf, -1e4, -90.0, 0.0, 90.0, 1e4, torch.inf, torch.nan]]])
    # as training with a probability that rounds to nothing
    out = silu_dropout(x, 1e-12, training=True)
    assert torch.equal(out[0, 0, 3:7], torch.tensor([0.0, 90, 1e4, torch.inf]))
    assert out[0, 0, 1:3].abs().max() < 1e-30
    assert out[0, 0, 7].isnan()


def test_kernels_are_what_runs(every_implementation, monkeypatch):
    called = []
    monkeypatch.setattr(gates._GatedResidual, "apply", lambda *inputs: called.append(inputs))
    gated_residual(*draw(4, (2, 3, 4)), 0.1, training=True)
    assert bool(called) == (every_implementation != "reference")
    inputs = torch.ones(2, 3, 4), torch.ones(2, 3, 4).half()
    namespaces = [kernels.fused(x) for x in inputs]
    native, triton = torch.ops.fairseq_csp_native, torch.ops.fairseq_csp_triton
    expected = {"native": [native, None], "triton": [triton, triton], "reference": [None, None]}
    assert namespaces == expected[every_implementation]
