"""Attention in blocks of queries, and by PyTorch's fused kernels, gives the same numbers."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fairseq_csp.modules.attention import (
    AttentionContext,
    _recomputed,
    _scores,
    make_attention,
)
from fairseq_csp.modules.attention.sigmoid import SigmoidAttention
from fairseq_csp.modules.attention.softmax import SoftmaxAttention
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.relative_bias import build_relative_bias
from tests.helpers.kernels import use_implementation

POSITIONS = 11
FUNCTIONS = ["softmax", "relu2", "laplace", "sigmoid"]
RAGGED = [(11, 11, 11), (11, 3, 0), (2, 5, 3)]
BIASES = ["simple", "rotary", None]


def attend(name, bias, lengths, channels=5):
    """Output and gradients of one attention function on fixed numbers."""
    generator = torch.Generator().manual_seed(0)
    values, queries, keys, incoming = (
        torch.randn(len(lengths), width, POSITIONS, generator=generator, dtype=torch.float64)
        for width in (channels, 4, 4, channels)
    )
    leaves = [x.requires_grad_() for x in (values, queries, keys)]
    lengths = SequenceLengths(lengths, POSITIONS, values.device)
    attention = make_attention(name, AttentionContext(channels, 4), {})
    mixed = attention(values, lengths, queries, keys, bias)
    mixed = lengths.zero_padding(mixed)
    if bias is not None:
        leaves += list(bias.parameters())
    return [mixed, *torch.autograd.grad(mixed, leaves, incoming)]


@pytest.mark.parametrize("lengths", [(11, 11), (11, 3)], ids=str)
@pytest.mark.parametrize("kind", ["simple", "rotary"])
@pytest.mark.parametrize("name", ["softmax", "relu2", "laplace"])
@pytest.mark.parametrize("most", [1, 22 * 3, 22 * 10])
def test_blocks_equal_the_whole(name, kind, lengths, most, monkeypatch):
    bias = build_relative_bias(kind, 15, 4).double()
    whole = attend(name, bias, lengths)
    monkeypatch.setattr(_scores, "MOST_SCORES", most)
    for ours, expected in zip(attend(name, bias, lengths), whole, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("lengths", [(11, 11), (11, 3), (11, 0)], ids=str)
@pytest.mark.parametrize("kind", ["rotary", None])
def test_fused_kernel_equals_the_matrix(kind, lengths, monkeypatch):
    bias = None if kind is None else build_relative_bias(kind, 15, 4).double()
    # on a CPU they serve where queries, with the bias in them, are as wide as values
    channels = 4 if bias is None else 8
    fused = attend("softmax", bias, lengths, channels)
    monkeypatch.setattr(SoftmaxAttention, "mix", _scores.ScoreAttention.mix)
    expected = attend("softmax", bias, lengths, channels)
    for ours, theirs in zip(fused, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def build_bias(kind):
    torch.manual_seed(0)
    return None if kind is None else build_relative_bias(kind, 15, 4).double()


def use_blocks(scores, monkeypatch):
    monkeypatch.setattr(_recomputed, "FEW_SCORES", 0)
    monkeypatch.setattr(_recomputed, "SCORES_OF_THREAD", scores)
    monkeypatch.setattr(_recomputed, "SCORES_ON_DEVICE", scores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.fixture(params=[1, 33, 130, 250], ids=lambda most: f"{most} scores")
def small_blocks(request, monkeypatch):
    """Blocks of one query, of three, of a sequence, of two sequences; none by PyTorch's kernels."""
    use_blocks(request.param, monkeypatch)
    monkeypatch.setattr(SoftmaxAttention, "mix", _scores.ScoreAttention.mix)


@pytest.mark.parametrize("one_by_one", [True, False], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("lengths", RAGGED, ids=str)
@pytest.mark.parametrize("kind", BIASES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_recomputed_blocks_equal_the_whole(
    name, kind, lengths, one_by_one, small_blocks, monkeypatch
):
    bias = build_bias(kind)
    monkeypatch.setattr(_recomputed, "_one_by_one", lambda device: one_by_one)
    found = attend(name, bias, lengths)
    monkeypatch.setattr(_scores.ScoreAttention, "of_scores_alone", False)
    for cls in (SoftmaxAttention, SigmoidAttention, _scores.ElementwiseAttention):
        monkeypatch.setattr(cls, "of_scores_alone", False)
    for ours, expected in zip(found, attend(name, bias, lengths), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def mixer(name, p, monkeypatch, most=33):
    use_blocks(most, monkeypatch)
    return make_attention(name, AttentionContext(5, 4, dropout=p), {}).train()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dropped_weights(dtype, monkeypatch):
    """With the unit matrix as values the weights come out."""
    attention = mixer("relu2", 0.3, monkeypatch)
    lengths = SequenceLengths((64, 64), 64, torch.device("cpu"))
    values = torch.eye(64, dtype=dtype).repeat(2, 1, 1)
    queries, keys = torch.rand(2, 2, 4, 64, dtype=dtype) + 0.1
    dropped = attention(values, lengths, queries, keys)
    whole = attention.eval()(values, lengths, queries, keys)
    assert abs((dropped == 0).double().mean() - 0.3) < 0.02
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0, whole / 0.7))
    assert not torch.equal(dropped[0] == 0, dropped[1] == 0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_with_dropped_weights(name, monkeypatch):
    bias = build_bias("simple")
    attention = mixer(name, 0.4, monkeypatch)
    lengths = SequenceLengths((11, 7), 11, torch.device("cpu"))
    inputs = [
        torch.randn(2, width, 11, dtype=torch.float64, requires_grad=True) for width in (5, 4, 4)
    ]

    def dropped(*inputs):
        torch.manual_seed(3)
        return lengths.zero_padding(attention(inputs[0], lengths, *inputs[1:3], bias))

    assert torch.autograd.gradcheck(dropped, (*inputs, *bias.parameters()), fast_mode=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bfloat16_and_autocast(name, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(2, width, 11, generator=generator) for width in (5, 4, 4)]
    lengths = SequenceLengths((11, 7), 11, torch.device("cpu"))
    attention, bias = mixer(name, 0.0, monkeypatch), build_relative_bias("simple", 15, 4)
    expected = lengths.zero_padding(attention(numbers[0], lengths, *numbers[1:], bias))
    narrow = [x.bfloat16() for x in numbers]
    found = [lengths.zero_padding(attention(narrow[0], lengths, *narrow[1:], bias))]
    assert found[0].dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found.append(lengths.zero_padding(attention(numbers[0], lengths, *numbers[1:], bias)))
    for mixed in found:
        torch.testing.assert_close(mixed.float(), expected, rtol=0.05, atol=0.05)


class LargestTensor(TorchDispatchMode):
    """Notes how many numbers the largest result of any operator has."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numbers = max(self.numbers, leaf.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["simple", "rotary"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_matrix_of_all_pairs(name, kind, p, monkeypatch):
    """Forward and backward in MEGA's layer."""
    attention = mixer(name, p, monkeypatch, most=100 * 8)
    bias = build_relative_bias(kind, 128, 4)
    lengths = SequenceLengths((100, 60), 100, torch.device("cpu"))
    inputs = [torch.randn(2, width, 100, requires_grad=True) for width in (5, 4, 4)]
    with LargestTensor() as largest:
        attention(inputs[0], lengths, *inputs[1:], bias).sum().backward()
    assert 100 * 8 <= largest.numbers < 100 * 100 / 4
    assert all(x.grad.abs().sum() > 0 for x in inputs)


@pytest.mark.parametrize(
    ("kernels", "name", "shape", "pay"),
    [
        ("native", "laplace", (1, 4, 513), True),
        ("native", "laplace", (9, 4, 512), False),
        ("native", "sigmoid", (1, 4, 513), False),
        ("reference", "laplace", (1, 4, 513), False),
        ("reference", "laplace", (17, 4, 512), True),
    ],
)
def test_where_blocks_pay(kernels, name, shape, pay, monkeypatch):
    use_implementation(kernels, monkeypatch)
    kernel = make_attention(name, AttentionContext(5, 4), {}).kernel()
    assert _recomputed.blocks_pay(torch.empty(shape), kernel) is pay
