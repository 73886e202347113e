"""What holds for every attention function, whatever it computes."""

import copy
import itertools

import pytest
import torch

from fairseq_csp.modules.attention import HeadAttention, attention_class
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.standalone import build_attention
from tests.mixers.entries import EVERY_CASE, NUMERICAL, QUADRATIC

ROWS = (9, 5, 1)
JUNK = (float("nan"), float("inf"), -float("inf"), 1e30)

every_case = pytest.mark.parametrize("case", EVERY_CASE, ids=str)


@pytest.fixture(autouse=True)
def fourier(case, monkeypatch):
    """Take kernel_rpe's form for long rows in half of its cases."""
    if case.name == "kernel_rpe" and not case.variant:
        monkeypatch.setattr("fairseq_csp.modules.attention.kernel_rpe.LONGEST_OF_PAIRS", 0)


def lengths_for(case, rows=ROWS):
    """Images have no padding."""
    return (case.grid[0] * case.grid[1],) * len(rows) if case.grid else rows


def build(case, *, seed=0, dtype=torch.double, **changes):
    torch.manual_seed(seed)
    module = build_attention(case.name, **(case.arguments | changes)).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            # some begin at 0 or 1, which would hide a mistake
            parameter += torch.randn_like(parameter) * 0.1
    return module.eval()


def inputs_of(module, rows, positions, *, seed=1, dtype=torch.double):
    """What the module is called with besides the lengths: one tensor or three."""
    generator = torch.Generator().manual_seed(seed)
    widths = [module.context.value_dim]
    widths += [module.context.query_dim] * (2 * module.uses_queries)
    shapes = [(rows, positions, width) for width in widths]
    return [
        torch.randn(shape, generator=generator, dtype=torch.double).to(dtype) for shape in shapes
    ]


def call(module, inputs, lengths):
    return module(inputs[0], torch.tensor(lengths), *inputs[1:])


def call_with_gradients(module, inputs, lengths, direction, autocast=None):
    """The output, and the gradients of its product with ``direction`` for inputs and parameters."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        out = call(module, inputs, lengths)
    sources = [*inputs, *module.parameters()]
    grads = torch.autograd.grad((out * direction).sum(), sources, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(sources, grads, strict=True)]
    return out.detach(), grads[: len(inputs)], grads[len(inputs) :]


def assert_close(found, expected, message=""):
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * scale, msg=message or None)


def assert_rows_are_alone(case, positions, junk):
    """Each row of a padded batch gives what it gives alone, in outputs and gradients."""
    module = build(case, max_positions=max(40, positions))
    lengths = lengths_for(case)
    inputs = inputs_of(module, len(lengths), positions)
    direction = torch.randn(inputs[0].shape, dtype=torch.double)
    for x in inputs:
        for row, n in enumerate(lengths):
            padding = x[row, n:]
            if junk and padding.numel():
                numbers = itertools.islice(itertools.cycle(JUNK), padding.numel())
                padding.copy_(torch.tensor([*numbers], dtype=torch.double).view_as(padding))
    out, input_grads, parameter_grads = call_with_gradients(module, inputs, lengths, direction)
    totals = [torch.zeros_like(grad) for grad in parameter_grads]
    for row, n in enumerate(lengths):
        alone, grads, own = call_with_gradients(
            module, [x[row : row + 1, :n] for x in inputs], (n,), direction[row : row + 1, :n]
        )
        assert_close(out[row, :n], alone[0])
        assert out[row, n:].eq(0).all()
        for found, expected in zip(input_grads, grads, strict=True):
            assert_close(found[row, :n], expected[0])
            assert found[row, n:].eq(0).all()
        for total, grad in zip(totals, own, strict=True):
            total += grad
    for found, expected in zip(parameter_grads, totals, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("junk", [False, True], ids=["numbers", "nan"])
@pytest.mark.parametrize("more", [0, 1, 21])
@every_case
def test_padding_and_company(case, more, junk):
    if case.grid and (more or junk):
        pytest.skip("an image has no padding")
    assert_rows_are_alone(case, max(lengths_for(case)) + more, junk)


@pytest.mark.parametrize(
    "case", [c for c in EVERY_CASE if c.name not in QUADRATIC and not c.grid], ids=str
)
def test_much_padding(case):
    assert_rows_are_alone(case, 4002, junk=True)


@every_case
def test_gradients_are_right(case):
    module = build(case)
    lengths = lengths_for(case, (5, 3, 1))
    inputs = [x.requires_grad_() for x in inputs_of(module, len(lengths), max(lengths))]
    names = [name for name, _ in module.named_parameters()]

    def function(*tensors):
        values, parameters = tensors[: len(inputs)], tensors[len(inputs) :]
        given = (values[0], torch.tensor(lengths), *values[1:])
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), given)

    parameters = [p.detach().clone().requires_grad_() for p in module.parameters()]
    torch.autograd.gradcheck(
        function, (*inputs, *parameters), fast_mode=True, atol=NUMERICAL.get(case.name, 1e-6)
    )


@every_case
def test_no_parameter_is_dead(case):
    module = build(case)
    lengths = lengths_for(case)
    inputs = inputs_of(module, len(lengths), max(lengths))
    _, _, grads = call_with_gradients(module, inputs, lengths, torch.randn(inputs[0].shape))
    for (name, _), grad in zip(module.named_parameters(), grads, strict=True):
        assert grad.ne(0).any(), name


@every_case
def test_evaluation_is_repeatable(case):
    module = build(case, dropout=0.5)
    lengths = lengths_for(case)
    inputs = inputs_of(module, len(lengths), max(lengths))
    before = copy.deepcopy(module.state_dict())
    first = call(module, inputs, lengths)
    torch.manual_seed(5)
    assert call(module, inputs, lengths).equal(first)
    for name, value in module.state_dict().items():
        assert value.equal(before[name]), name


@every_case
def test_state_is_saved_and_restored(case):
    module, other = build(case), build(case, seed=1)
    lengths = lengths_for(case)
    inputs = inputs_of(module, len(lengths), max(lengths))
    other.load_state_dict(module.state_dict())
    assert call(other, inputs, lengths).equal(call(module, inputs, lengths))
    for (name, value), (_, restored) in zip(
        module.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert value.equal(restored), name


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, 30), (torch.bfloat16, 30), (torch.float16, 1), (torch.float16, 5)],
    ids=["float32", "bfloat16", "float16", "float16-larger"],
)
@every_case
def test_narrow_numbers(case, dtype, size):
    """A model may be all of one dtype, or float32 under autocast."""
    lengths = lengths_for(case)
    module = build(case, dtype=dtype)
    inputs = [x * size for x in inputs_of(module, len(lengths), max(lengths), dtype=dtype)]
    wide = build(case, dtype=torch.float32)
    for found in [module, *([] if isinstance(module, HeadAttention) else [wide])]:
        out, grads, more = call_with_gradients(found, inputs, lengths, 1.0)
        assert out.dtype == dtype
        assert all(x.isfinite().all() for x in (out, *grads, *more))
    narrow = torch.float16 if dtype == torch.float16 else torch.bfloat16
    out, grads, more = call_with_gradients(wide, inputs, lengths, 1.0, narrow)
    assert isinstance(module, HeadAttention) or out.dtype == dtype
    assert all(x.isfinite().all() for x in (out, *grads, *more))


@every_case
def test_half_precision_is_close(case):
    """It is the same function, not only finite."""
    lengths = lengths_for(case)
    exact = build(case)
    inputs = [x.bfloat16() for x in inputs_of(exact, len(lengths), max(lengths))]
    expected = call(exact, [x.double() for x in inputs], lengths)
    wide = build(case).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = call(wide, inputs, lengths).double()
    assert (found - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("n", [1, 2])
@every_case
def test_shortest_rows(case, n):
    if case.grid:
        pytest.skip("an image has more pixels")
    module = build(case)
    inputs = inputs_of(module, 2, n)
    out, grads, more = call_with_gradients(module, inputs, (n, n), 1.0)
    assert all(x.isfinite().all() for x in (out, *grads, *more))


@pytest.mark.parametrize(
    "case",
    [c for c in EVERY_CASE if not (c.grid or issubclass(attention_class(c.name), HeadAttention))],
    ids=str,
)
def test_rows_without_valid_positions(case):
    """The last chunks of a row may hold nothing but padding."""
    module = build(case)
    # as a layer calls it: channels before positions, lengths that may be 0
    plain = attention_class(case.name).forward
    inputs = [x.transpose(1, 2).requires_grad_() for x in inputs_of(module, 3, 6)]
    lengths = SequenceLengths((6, 0, 4), 6, torch.device("cpu"))
    out = plain(module, inputs[0], lengths, *inputs[1:])
    assert out.isfinite().all()
    assert out[1].eq(0).all()
    sources = [*inputs, *module.parameters()]
    for grad in torch.autograd.grad(out.sum(), sources, allow_unused=True):
        assert grad is None or grad.isfinite().all()
    alone = plain(
        module, inputs[0][:1], SequenceLengths((6,), 6, torch.device("cpu")),
        *(x[:1] for x in inputs[1:]),
    )  # fmt: skip
    assert_close(out[0], alone[0])


@every_case
def test_dropout_acts_in_training_only(case):
    """A function that says that it drops weights does, and leaves their expectation as it is."""
    module = build(case, dropout=0.5).train()
    lengths = lengths_for(case)
    inputs = inputs_of(module, len(lengths), max(lengths))
    first, second = (call(module, inputs, lengths) for _ in range(2))
    if not module.uses_dropout:
        assert first.equal(second)
        return
    assert not first.equal(second)
    assert first.isfinite().all()
    module.eval()
    plain = build(case)
    assert_close(call(module, inputs, lengths), call(plain, inputs, lengths))
