"""The CSP operator against the direct formula, and its promised properties."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairseq_csp.ops.csp import (
    ORDERS,
    SHIFTS,
    channel_shifts,
    channel_wise_sample_permutation,
    eager,
    permutation_matrix,
    permute_channels,
    takes_packed,
)
from fairseq_csp.ops.csp.naive import permute_naive
from fairseq_csp.ops.csp.operators import csp_permute, csp_restore, csp_shifts
from fairseq_csp.ops.kernels import implementation as chosen
from tests.helpers.kernels import INTERPRETED, use_implementation

GOLDEN = np.load(Path(__file__).parent / "csp_operator.npz")
GOLDEN_CASES = sorted({name.split("/")[0] for name in GOLDEN.files}, key=int)
IMPLEMENTATIONS = ["native", "reference", "reference in small blocks", "reference as on a GPU"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
GROUPS = [1, 2, 3, 4, 8, 9, 300, "full"]


@pytest.fixture(params=["triton"] if INTERPRETED else IMPLEMENTATIONS, autouse=True)
def implementation(request, monkeypatch):
    """Every test here runs over every implementation."""
    name, _, how = request.param.partition(" ")
    use_implementation(name, monkeypatch)
    if how == "in small blocks":
        monkeypatch.setattr(eager, "BLOCK", 7)
    elif how == "as on a GPU":
        monkeypatch.setattr(eager, "_blocks", lambda *inputs: [eager._one_block(*inputs)])
    return name


def draw(batch, positions, channels, dtype=torch.float32, seed=0, ties=False):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, positions, channels, generator=generator, dtype=torch.float64)
    if ties:
        values = (values * 2).round() / 2
    return values.to(dtype)


def same(a, b):
    """Bit for bit, NaN in the same places; 0 and -0 differ."""
    return (
        torch.equal(a.isnan(), b.isnan())
        and torch.equal(a.nan_to_num(), b.nan_to_num())
        and torch.equal(a.nan_to_num().signbit(), b.nan_to_num().signbit())
    )


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_equals_published_outputs(case):
    values = torch.from_numpy(GOLDEN[f"{case}/v"])
    layer, num_layers = (int(x) for x in GOLDEN[f"{case}/layer"])
    out = channel_wise_sample_permutation(values, layer=layer, num_layers=num_layers)
    assert same(out, torch.from_numpy(GOLDEN[f"{case}/out"]))
    length, channels = values.shape[1:]
    published = torch.from_numpy(GOLDEN[f"{case}/shift"]) % length
    assert torch.equal(channel_shifts(length, channels, layer, num_layers), published)


@pytest.mark.parametrize("function", [channel_wise_sample_permutation, permute_naive])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # shifts 1 and ceil(5 ** (1 / 2)) = 3
        ({}, [[3, 1, 4, 5, 1, 2, 5, 3, 2, 4], [1, 1, 2, 2, 0, 0, 0, 0, 0, 0]]),
        ({"descending": True}, [[4, 5, 3, 1, 5, 3, 1, 2, 2, 4], [2, 2, 1, 1, 0, 0, 0, 0, 0, 0]]),
        (
            {"order": "sort_shift"},
            [[3, 1, 4, 5, 5, 3, 1, 2, 2, 4], [2, 1, 1, 2, 0, 0, 0, 0, 0, 0]],
        ),
        (
            {"shift": "linear", "group_size": 3},
            [[1, 2, 4, 4, 5, 5, 2, 1, 3, 3], [1, 1, 2, 2, 0, 0, 0, 0, 0, 0]],
        ),
        (
            {"shift": "none", "group_size": "full"},
            [[1, 1, 2, 2, 3, 3, 4, 4, 5, 5], [1, 1, 2, 2, 0, 0, 0, 0, 0, 0]],
        ),
    ],
    ids=str,
)
def test_by_hand(function, options, expected):
    """Sequences of 5 and 2 positions, 2 channels."""
    first = [[4, 2], [5, 4], [1, 5], [2, 1], [3, 3]]
    second = [[2, 1], [1, 2], [7, 7], [7, 7], [7, 7]]
    out = function(torch.tensor([first, second], dtype=torch.float32), [5, 2], **options)
    assert out.flatten(1).tolist() == expected


def test_shifts_are_powers_of_the_length():
    # 8 ** (k / 6), and 64 ** (k / 2) exactly: nothing is rounded up from a whole number
    assert channel_shifts(8, 3, 0, 2).tolist() == [1, 2, 2]
    assert channel_shifts(8, 3, 1, 2).tolist() == [3, 4, 6]
    assert channel_shifts(64, 2).tolist() == [1, 8]
    assert channel_shifts(5, 4, shift="linear", group_size=3).tolist() == [0, 0, 3, 1]
    assert channel_shifts(5, 4, shift="linear", group_size="full").tolist() == [0, 0, 0, 0]
    assert channel_shifts(1, 2).tolist() == [0, 0]
    assert channel_shifts(4, 0).tolist() == []


def test_shifts_reach_every_scale_over_all_layers():
    shifts = torch.cat([channel_shifts(4000, 64, layer, 4) for layer in range(4)])
    assert torch.equal(shifts, shifts.sort().values)
    assert shifts[0] == 1
    assert 3800 < shifts[-1] < 4000


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_equals_naive(data):
    positions = data.draw(st.sampled_from([1, 2, 3, 5, 8, 9, 12, 31]))
    batch = data.draw(st.integers(1, 3))
    options = {
        "layer": data.draw(st.integers(0, 2)),
        "num_layers": 3,
        "shift": data.draw(st.sampled_from(SHIFTS)),
        "group_size": data.draw(st.sampled_from(GROUPS)),
        "order": data.draw(st.sampled_from(ORDERS)),
        "descending": data.draw(st.booleans()),
    }
    ragged = st.lists(st.integers(1, positions), min_size=batch, max_size=batch)
    lengths = data.draw(st.none() | ragged)
    values = draw(batch, positions, data.draw(st.integers(1, 4)), seed=positions, ties=True)
    for _ in range(data.draw(st.integers(0, 2))):
        values.view(-1)[data.draw(st.integers(0, values.numel() - 1))] = math.nan
    incoming = draw(*values.shape, seed=1)
    results = []
    for function in (channel_wise_sample_permutation, permute_naive):
        values.grad = None
        out = function(values.requires_grad_(), lengths, **options)
        out.backward(incoming)
        results.append((out.detach(), values.grad))
    for found, expected in zip(*results, strict=True):
        assert same(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [2, 4, 9, "full"])
def test_each_channel_is_permuted_bit_for_bit(dtype, group):
    values = draw(2, 501, 6, dtype)
    lengths = [501, 64]
    out = channel_wise_sample_permutation(values, lengths, layer=1, num_layers=2, group_size=group)
    assert out.dtype == dtype
    for row, n in enumerate(lengths):
        assert torch.equal(out[row, :n].sort(0).values, values[row, :n].sort(0).values)
        assert not torch.equal(out[row, :n], values[row, :n])
        assert (out[row, n:] == 0).all()


@pytest.mark.parametrize("padding", [8, 12, 4002])
@pytest.mark.parametrize("group", [2, 3, 9, "full"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_row_does_not_depend_on_its_batch(padding, group, order):
    options = {"layer": 1, "num_layers": 2, "group_size": group, "order": order}
    row = draw(1, 7, 5)
    alone = channel_wise_sample_permutation(row, **options)
    batch = torch.full((3, padding, 5), math.nan)
    batch[1, :7] = row[0]
    batch[0], batch[2, :2] = math.inf, 1.0
    padded = channel_wise_sample_permutation(batch, [padding, 7, 2], **options)
    assert torch.equal(padded[1, :7], alone[0])
    assert (padded[1, 7:] == 0).all()


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("group", [2, 3, "full"])
def test_permutation_matrix_is_one_and_gives_the_output(shift, group):
    values = draw(2, 9, 3, torch.float64, ties=True)
    lengths = [9, 6]
    options = {"layer": 1, "num_layers": 2, "shift": shift, "group_size": group}
    matrix = permutation_matrix(values, lengths, **options)
    assert matrix.shape == (2, 3, 9, 9)
    for row, n in enumerate(lengths):
        inside = matrix[row, :, :n, :n]
        assert (inside.sum(1) == 1).all()
        assert (inside.sum(2) == 1).all()
        assert matrix[row].sum() == 3 * n
    out = channel_wise_sample_permutation(values, lengths, **options)
    assert torch.equal(torch.einsum("bcij,bjc->bic", matrix, values), out)


@pytest.mark.parametrize("group", [2, 3, 9, "full"])
@pytest.mark.parametrize("order", ORDERS)
def test_gradcheck(group, order):
    values = draw(2, 11, 2, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: channel_wise_sample_permutation(
            v, [11, 4], layer=1, num_layers=2, group_size=group, order=order
        ),
        values,
    )


def test_nan_inside_and_anything_in_the_padding():
    values = draw(1, 6, 1)
    values[0, 2], values[0, 4:] = math.nan, math.inf
    values.requires_grad_()
    out = channel_wise_sample_permutation(values, [4])
    assert out.isnan().sum() == 1
    assert (out[0, 4:] == 0).all()
    out.backward(torch.full_like(values, math.nan).index_fill_(1, torch.arange(4), 1.0))
    assert torch.equal(values.grad.flatten(), torch.tensor([1.0, 1, 1, 1, 0, 0]))


def test_strides_and_autocast():
    values = draw(2, 10, 6)
    expected = channel_wise_sample_permutation(values)
    for view in (
        values.transpose(1, 2).contiguous().transpose(1, 2),
        values.repeat_interleave(2, 1)[:, ::2],
        values.flip(2).flip(2),
    ):
        assert torch.equal(channel_wise_sample_permutation(view), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(channel_wise_sample_permutation(values), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 17, 33), (2, 64, 32), (3, 1, 40), (2, 100, 2)], ids=str)
def test_memory_order_changes_nothing(shape, dtype):
    """In float32 the library moves tiles of 8 or 16 numbers, and the rest one by one."""
    results = []
    for positions_first in True, False:
        values, incoming = draw(*shape, dtype, seed=1), draw(*shape, dtype, seed=2)
        if not positions_first:
            values, incoming = (x.mT.contiguous().mT for x in (values, incoming))
        values.requires_grad_()
        out = channel_wise_sample_permutation(values)
        out.backward(incoming)
        assert values.grad.is_contiguous() == values.is_contiguous()
        results.append((out.detach(), values.grad))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_compiles_without_a_break_and_once_for_all_lengths():
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(channel_wise_sample_permutation, backend=count, fullgraph=True)
    for seed in range(20):
        lengths = torch.randint(1, 11, (2,), generator=torch.Generator().manual_seed(seed))
        values = draw(2, 10, 6, seed=seed)
        expected = channel_wise_sample_permutation(values, lengths)
        assert torch.equal(compiled(values, lengths), expected)
    assert len(graphs) == 1
    with pytest.raises(ValueError, match="not all from 0 to the 10 positions"):
        compiled(values, torch.tensor([3, 11]))


def test_compiled_gradient():
    torch._dynamo.reset()
    compiled = torch.compile(channel_wise_sample_permutation, backend="aot_eager", fullgraph=True)
    for lengths in (None, torch.tensor([10, 7])):
        values, again = (draw(2, 10, 6).requires_grad_() for _ in range(2))
        out, expected = compiled(values, lengths), channel_wise_sample_permutation(again, lengths)
        assert torch.equal(out, expected)
        incoming = draw(2, 10, 6, seed=1)
        out.backward(incoming)
        expected.backward(incoming)
        assert torch.equal(values.grad, again.grad)


@pytest.mark.parametrize("group", [1, 2, 3, 9])
@pytest.mark.parametrize("lengths", [None, [9, 6]], ids=str)
def test_operators_keep_the_rules_of_torch_library(group, lengths):
    values = draw(2, 9, 3).transpose(1, 2).contiguous().requires_grad_()
    lengths = None if lengths is None else torch.tensor(lengths)
    counts = torch.tensor([9]) if lengths is None else lengths
    inputs = (counts, 9, 3, 1, 2, "exponential", group)
    torch.library.opcheck(csp_shifts, inputs)
    shifts = csp_shifts(*inputs)
    torch.library.opcheck(csp_permute, (values, lengths, shifts, group, True, False))
    grad, kept = csp_permute(values.detach(), lengths, shifts, group, True, False)
    torch.library.opcheck(csp_restore, (grad, lengths, shifts, kept, group, True))
    if chosen(values.device) != "native" or not takes_packed(group):
        return
    # end to end in one row
    lengths = torch.tensor([4, 5])
    shifts = csp_shifts(lengths, 9, 3, 1, 2, "exponential", group)
    values = draw(1, 9, 3).transpose(1, 2).contiguous().requires_grad_()
    torch.library.opcheck(csp_permute, (values, lengths, shifts, group, True, False))
    grad, kept = csp_permute(values.detach(), lengths, shifts, group, True, False)
    torch.library.opcheck(csp_restore, (grad, lengths, shifts, kept, group, True))


def test_lengths_that_are_sums_of_a_mask_leave_nothing_behind():
    values = draw(2, 37, 6)
    lengths = [23, 31]
    expected = channel_wise_sample_permutation(values, lengths, shift="linear", group_size=5)
    sums = torch.tensor(lengths, dtype=torch.float32)
    for counts in (sums, sums.double().tolist(), sums.int(), lengths):
        out = channel_wise_sample_permutation(values, counts, shift="linear", group_size=5)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("group", [2, 3, "full"])
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0, 0)], ids=str)
def test_nothing_to_permute(shape, group):
    values = torch.zeros(shape, requires_grad=True)
    out = channel_wise_sample_permutation(values, group_size=group)
    assert out.shape == shape
    out.sum().backward()
    assert values.grad.shape == shape
    assert permutation_matrix(values).shape == (shape[0], shape[2], shape[1], shape[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lengths": [3, 0]}, "sequence 1 has length 0"),
        ({"lengths": torch.tensor([6, 3])}, "sequence 0 has length 6"),
        ({"lengths": [3]}, "1 lengths were given for 2 sequences"),
        ({"lengths": torch.tensor([[3], [4]])}, r"of shape \(2,\), .* got \(2, 1\)"),
        ({"lengths": torch.tensor([3.5, 2.0])}, "sequence 0 has length 3.5"),
        ({"lengths": [math.nan, 2]}, "sequence 0 has length nan"),
        ({"lengths": [math.inf, 2]}, "sequence 0 has length inf"),
        ({"num_layers": 0}, "layer is 0 and num_layers is 0"),
        ({"layer": 5, "num_layers": 2}, "layer is 5 and num_layers is 2"),
        ({"layer": -1}, "layer is -1"),
        ({"layer": 0.5}, "layer is 0.5"),
        ({"shift": "cubic"}, "exponential, linear, none"),
        ({"order": "sort"}, "shift_sort, sort_shift"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": "all"}, "'full'"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        channel_wise_sample_permutation(draw(2, 5, 3), **arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [1, 2, 3, 8])
@pytest.mark.parametrize("order", ORDERS)
def test_sequences_end_to_end(order, group, dtype, implementation):
    options = {"layer": 1, "num_layers": 2, "shift": "exponential", "order": order}
    options |= {"group_size": group, "descending": True}
    lengths = [1, 64, 33, 7, 31, 200, 2]
    values = draw(1, sum(lengths), 3, dtype, ties=True).transpose(1, 2).contiguous()
    values[0, :, ::9] = math.nan
    if implementation != "native":
        return
    values.requires_grad_()
    out = permute_channels(values, lengths, **options)
    rows = values.detach().split(lengths, dim=2)
    rows = [row.clone().requires_grad_() for row in rows]
    expected = [permute_channels(row, None, **options) for row in rows]
    assert same(out, torch.cat(expected, dim=2))
    incoming = draw(1, sum(lengths), 3, dtype, seed=1).transpose(1, 2)
    out.backward(incoming)
    torch.autograd.backward(expected, incoming.split(lengths, dim=2))
    assert same(values.grad, torch.cat([row.grad for row in rows], dim=2))


def test_kernels_of_small_groups_take_sequences_end_to_end():
    assert [takes_packed(group) for group in (1, 8, 9, "full")] == [True, True, False, False]
