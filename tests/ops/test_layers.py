"""What layers do position by position against the formulas, over every implementation."""

import pytest
import torch
import torch.nn.functional as F

from fairseq_csp.ops import layers
from fairseq_csp.ops.dropout import dropout
from fairseq_csp.ops.layers import feed_forward, gated_mixing, linear_silu

pytestmark = pytest.mark.usefixtures("every_implementation")

DIM, HIDDEN = 5, 7
# less than a block of positions, and more than one in float32 and in bfloat16
POSITIONS = [1, 70, 1100]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def draw(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [number.to(dtype).requires_grad_() for number in numbers]


def apply(weight, x, bias):
    return weight @ x + bias[:, None]


def linear_silu_inputs(positions, dtype):
    return draw((3, HIDDEN, positions), (DIM, HIDDEN), (DIM,), dtype=dtype)


def linear_silu_formula(kept, x, weight, bias):
    return kept[0] * F.silu(apply(weight, x, bias))


def feed_forward_inputs(positions, dtype):
    shapes = ((3, DIM, positions), (3, DIM, positions), (HIDDEN, DIM), (HIDDEN,), (DIM, HIDDEN))
    return draw(*shapes, (DIM,), dtype=dtype)


def feed_forward_formula(kept, x, residual, weight1, bias1, weight2, bias2):
    return residual + kept[0] * apply(weight2, F.silu(apply(weight1, x, bias1)), bias2)


def gated_mixing_inputs(positions, dtype):
    channels = (DIM, HIDDEN, DIM)
    rows = 2 * DIM + HIDDEN
    shapes = ((rows, DIM), (rows,), (DIM, HIDDEN), (DIM,))
    return draw(*((3, count, positions) for count in channels), *shapes, dtype=dtype)


def gated_mixing_formula(kept, average, mixed, residual, weight, bias, out_weight, out_bias):
    parts = apply(weight, kept[0] * F.silu(average), bias)
    update, reset, direct = parts.split((DIM, HIDDEN, DIM), 1)
    inner = direct + apply(out_weight, F.silu(reset) * mixed, out_bias)
    return torch.lerp(residual, kept[1] * F.silu(inner), torch.sigmoid(update))


FUNCTIONS = {
    linear_silu: (linear_silu_inputs, linear_silu_formula),
    feed_forward: (feed_forward_inputs, feed_forward_formula),
    gated_mixing: (gated_mixing_inputs, gated_mixing_formula),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda one: one.__name__)


def kept_numbers(positions, dtype, p):
    """What both dropouts of a function keep, drawn in its order."""
    ones = torch.ones(3, DIM, positions, dtype=dtype)
    return [dropout(ones, p, training=True).double() for _ in range(2)]


def close(found, expected, dtype):
    """Compare by the largest number: those summed over positions cancel out."""
    bound = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float64: 1e-10}[dtype]
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= bound * expected.abs().max()


@every_function
@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("positions", POSITIONS)
def test_equals_its_formula(function, positions, dtype, p):
    """In value and gradients, with the numbers that dropout by itself would keep."""
    inputs, formula = FUNCTIONS[function]
    values = inputs(positions, dtype)
    wide = [value.detach().double().requires_grad_() for value in values]
    torch.manual_seed(5)
    kept = kept_numbers(positions, dtype, p)
    torch.manual_seed(5)
    found = function(*values, p, training=True)
    expected = formula(kept, *wide)
    close(found, expected, dtype)
    incoming = torch.randn(found.shape).to(dtype)
    gradients = torch.autograd.grad(found, values, incoming)
    expected = torch.autograd.grad(expected, wide, incoming.double())
    for ours, theirs in zip(gradients, expected, strict=True):
        close(ours, theirs, dtype)


@every_function
def test_nothing_is_dropped_in_evaluation(function):
    inputs, formula = FUNCTIONS[function]
    values = inputs(70, torch.float32)
    expected = formula((1, 1), *(value.double() for value in values))
    close(function(*values, 0.5, training=False), expected, torch.float32)


def test_the_residual_may_be_the_input():
    x, _, *maps = feed_forward_inputs(300, torch.float32)
    gradients = []
    for residual in (x, x.clone()):
        out = feed_forward(x, residual, *maps, 0.0, training=True)
        gradients.append(torch.autograd.grad(out.square().sum(), [x, *maps]))
    for ours, theirs in zip(*gradients, strict=True):
        close(ours, theirs.double(), torch.float32)


@every_function
def test_views_and_expanded_gradients(function):
    """Parts of a tensor, and the gradient of a sum."""
    values = FUNCTIONS[function][0](300, torch.float32)
    results = []
    for inputs in (values, [torch.cat([x, x])[: len(x)] for x in values]):
        shifted = [F.pad(x, (3, 5))[..., 3:-5] if x.dim() == 3 else x for x in inputs]
        for given in (inputs, shifted):
            torch.manual_seed(2)
            out = function(*given, 0.4, training=True)
            results.append((out.detach(), *torch.autograd.grad(out.sum(), values)))
    for result in results[1:]:
        for ours, theirs in zip(result, results[0], strict=True):
            close(ours, theirs.double(), torch.float32)


@every_function
def test_the_same_twice(function):
    values = FUNCTIONS[function][0](1100, torch.float32)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        out = function(*values, 0.2, training=True)
        results.append((out, *torch.autograd.grad(out.square().sum(), values)))
    assert all(map(torch.equal, *results))


@every_function
def test_empty_batch(function):
    values = FUNCTIONS[function][0](9, torch.float32)
    values = [x[:0] if x.dim() == 3 else x for x in values]
    out = function(*values, 0.1, training=True)
    assert out.shape == (0, DIM, 9)
    gradients = torch.autograd.grad(out.sum(), values)
    assert [x.shape for x in gradients] == [x.shape for x in values]


@every_function
def test_autocast(function):
    values = FUNCTIONS[function][0](20, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = function(*values, 0.0, training=True)
    # what has no residual is of autocast's dtype
    assert out.dtype == (torch.bfloat16 if function is linear_silu else torch.float32)
    expected = FUNCTIONS[function][1]((1, 1), *(value.double() for value in values))
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()


@every_function
@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_no_probability(function, p):
    with pytest.raises(ValueError, match=f"dropout probability is {p}"):
        function(*FUNCTIONS[function][0](4, torch.float32), p, training=True)


def test_kernels_are_what_runs(every_implementation, monkeypatch):
    called = []
    for name in ("_LinearSilu", "_FeedForward", "_GatedMixing"):
        apply = getattr(layers, name).apply
        monkeypatch.setattr(
            getattr(layers, name), "apply", lambda *x, apply=apply: called.append(x) or apply(*x)
        )
    for function, (inputs, _) in FUNCTIONS.items():
        function(*inputs(4, torch.float32), 0.1, training=True)
        function(*inputs(4, torch.float64), 0.1, training=True)
    assert len(called) == (3 if every_implementation == "native" else 0)
