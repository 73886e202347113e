"""Norms, embeddings, positions, relative bias, rows and pooling."""

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.modules import PositionalEmbedding

from fairseq_csp.errors import UserError
from fairseq_csp.modules.embeddings import source_embedding
from fairseq_csp.modules.gated_attention_unit import flash_norm
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.norms import NORMS, build_norm
from fairseq_csp.modules.pointwise import dropout, linear
from fairseq_csp.modules.pooling import pool
from fairseq_csp.modules.positions import LearnedPositions, SinusoidalPositions
from fairseq_csp.modules.relative_bias import build_relative_bias

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", NORMS)
def test_eps_is_that_of_the_family(name):
    """On numbers this small the result is that of eps."""
    x = torch.full((1, 4, 3), 1e-4)
    x[:, 0] = 3e-4
    if name in ("scalenorm", "rmsnorm"):
        spread = x.square().mean(1, keepdim=True)
        centred = x
    elif name == "layernorm":
        spread = x.var(1, correction=0, keepdim=True)
        centred = x - x.mean(1, keepdim=True)
    else:
        spread, centred = torch.ones(1), x
    for norm, eps in (
        (build_norm(name, 4), 1e-5),
        (flash_norm(name, 4), 1e-6 if name in ("scalenorm", "rmsnorm") else 1e-5),
    ):
        expected = centred / torch.sqrt(spread + eps)
        torch.testing.assert_close(norm.eval()(x), expected, rtol=1e-4, atol=0)


def test_unknown_norm():
    with pytest.raises(UserError, match="--norm-type is 'groupnorm'; it must be one of layernorm"):
        build_norm("groupnorm", 4)


def test_sync_batch_norm_is_batch_norm_in_one_process():
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5)
    norms = [build_norm(name, 4) for name in ("batchnorm", "syncbatchnorm")]
    for _ in range(2):
        outputs = [norm(x) for norm in norms]
        torch.testing.assert_close(*outputs)
    states = [norm.state_dict() for norm in norms]
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name])
    torch.testing.assert_close(*(norm.eval()(x) for norm in norms))


def test_symbols_and_pixels():
    torch.manual_seed(0)
    dictionary = Dictionary()
    for number in range(2000):
        dictionary.add_symbol(str(number))
    symbols = source_embedding(dictionary, 64)
    assert (symbols.weight[dictionary.pad()] == 0).all()
    assert symbols.weight.std().item() == pytest.approx(64**-0.5, rel=0.02)
    pixels = source_embedding(None, 20000)
    assert pixels.weight.std().item() == pytest.approx(1, rel=0.02)
    assert pixels.bias.std().item() == pytest.approx(0.1, rel=0.02)
    x = torch.randn(2, 3)
    torch.testing.assert_close(pixels(x), x[:, :, None] * pixels.weight + pixels.bias)


@pytest.mark.parametrize("dim", [6, 7])
def test_sinusoids_are_those_of_fairseq(dim):
    tokens = torch.full((1, 9), 5)
    theirs = PositionalEmbedding(20, dim, padding_idx=1)
    ours = SinusoidalPositions(20, dim, offset=2)
    torch.testing.assert_close(ours(9), theirs(tokens)[0], rtol=0, atol=0)
    assert not ours.state_dict()


@pytest.mark.parametrize("kind", [SinusoidalPositions, LearnedPositions])
def test_more_positions_than_there_are(kind):
    positions = kind(20, 4, offset=2)
    assert positions(20).shape == (20, 4)
    with pytest.raises(UserError, match="a row has 21 positions, but --max-positions is 20"):
        positions(21)


def test_simple_bias():
    bias = build_relative_bias("simple", 5, 4)
    line = bias.rel_pos_bias
    found = bias(3)
    for i in range(3):
        for j in range(3):
            assert found[i, j] == line[5 - 1 + j - i]
    with pytest.raises(UserError, match="a row has 6 positions, but .* reaches only 5"):
        bias(6)


def test_rotary_bias_depends_on_the_distance_only():
    bias = build_relative_bias("rotary", 5, 8)
    found = bias(7)
    torch.testing.assert_close(found[:-1, :-1], found[1:, 1:])
    assert not torch.allclose(found[0], found[0, :1].expand(7))
    with pytest.raises(UserError, match="--z-dim is 7"):
        build_relative_bias("rotary", 5, 7)


def test_unknown_bias():
    with pytest.raises(UserError, match="--rel-pos-bias is 'none'"):
        build_relative_bias("none", 5, 4)


def test_rows():
    lengths = SequenceLengths.of(torch.tensor([3, 5]), 2, 5, CPU)
    assert not lengths.full
    assert lengths.mask.squeeze(1).sum(1).tolist() == [3, 5]
    assert SequenceLengths.of(None, 2, 5, CPU).full
    x = torch.full((2, 1, 5), torch.nan)
    x[0, :, :3] = 1
    x[1] = 1
    assert lengths.zero_padding(x).sum() == 8
    chunks = SequenceLengths((3, 5, 6), 6, CPU).chunks(2)
    assert chunks.host == (2, 1, 0, 2, 2, 1, 2, 2, 2)
    assert chunks.positions == 2


@pytest.mark.parametrize("length", [0, 6])
def test_wrong_lengths(length):
    with pytest.raises(ValueError, match=f"sequence 1 has length {length}"):
        SequenceLengths.of(torch.tensor([3, length]), 2, 5, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_pooling(dtype):
    x = torch.randn(2, 3, 4).to(dtype)
    x[0, :, 2:] = torch.nan
    lengths = SequenceLengths((2, 4), 4, CPU)
    mean = pool(x, lengths, "mp")
    assert mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(mean[0], x[0, :, :2].to(mean.dtype).mean(1))
    torch.testing.assert_close(mean[1], x[1].to(mean.dtype).mean(1))
    torch.testing.assert_close(pool(x, lengths, "cls"), x[:, :, 0].to(mean.dtype))


def test_long_rows_are_summed_in_float32():
    """In bfloat16 a sum stops growing at 256 ones."""
    x = torch.ones(1, 1, 4000, dtype=torch.bfloat16)
    assert pool(x, SequenceLengths((4000,), 4000, CPU), "mp") == 1


def test_linear_of_channels():
    layer = torch.nn.Linear(3, 5)
    x = torch.randn(2, 3, 7)
    torch.testing.assert_close(linear(layer, x), layer(x.transpose(1, 2)).transpose(1, 2))


def test_feature_dropout_drops_whole_channels():
    torch.manual_seed(0)
    x = torch.ones(50, 40, 6)
    dropped = dropout(x, 0.3, True, True)
    zero = dropped == 0
    assert torch.equal(zero.any(2), zero.all(2))
    assert 0.25 < zero.float().mean() < 0.35
    assert dropped[~zero].unique().item() == pytest.approx(1 / 0.7)
    single = dropout(x, 0.3, True, False) == 0
    assert not torch.equal(single.any(2), single.all(2))
    assert torch.equal(dropout(x, 0.3, False, True), x)
