"""Megalodon's moving average against its recurrence, and in MEGA."""

import math

import pytest
import torch

from fairseq_csp.errors import UserError
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.moving_average import ComplexMovingAverage, build_moving_average
from fairseq_csp.ops.ema import damped_rotations
from tests.helpers.building import small, tokens
from tests.helpers.commands import train

CPU = torch.device("cpu")


def make(dim=3, components=4, truncation=None):
    torch.manual_seed(0)
    average = ComplexMovingAverage(dim, components, truncation).double()
    with torch.no_grad():
        average.gamma += torch.randn_like(average.gamma) * 0.3
    return average


def by_recurrence(average, x):
    """One channel of one row and one direction after the other, position by position."""
    dim, components = x.size(0), average.alpha.size(1)
    out = average.omega[:, None] * x
    for row in range(2 * dim):
        channel, ahead = row % dim, row >= dim
        p = average.alpha[row, :, 0].sigmoid()
        n = torch.arange(1, components + 1).double()
        angle = n * 2 * math.pi / components * average.theta[row, 0, 0].sigmoid()
        q = (1 - p * average.delta[row, :, 0].sigmoid()) * torch.exp(1j * angle)
        gamma = torch.view_as_complex(average.gamma[row])
        state = torch.zeros(components, dtype=torch.complex128)
        places = range(x.size(1))
        for i in reversed(places) if ahead else places:
            state = q * state + p * x[channel, i]
            out[channel, i] += (gamma * state).sum().real / math.sqrt(components)
    return out


def test_recurrence_on_padded_rows():
    average, counts = make(), (9, 1, 4)
    x = torch.randn(3, 3, 9, dtype=torch.float64)
    for row, n in enumerate(counts):
        x[row, :, n:] = torch.nan
    found = average(x, SequenceLengths(counts, 9, CPU))
    for row, n in enumerate(counts):
        expected = by_recurrence(average, x[row, :, :n])
        torch.testing.assert_close(found[row, :, :n], expected, rtol=0, atol=1e-12)


def test_initial_numbers():
    torch.manual_seed(0)
    average = ComplexMovingAverage(8, 4)
    speeds = average.theta.sigmoid().flatten()
    expected = torch.tensor([8 ** (-k / 8) for k in range(1, 9)]).flip(0)
    for direction in speeds.chunk(2):
        torch.testing.assert_close(direction.sort().values, expected)
    assert not speeds[:8].equal(speeds[8:])
    assert average.gamma[..., 1].eq(0).all() and average.gamma[..., 0].ne(0).all()
    assert sum(p.numel() for p in average.parameters()) == 8 * (2 * (4 * 4 + 1) + 1)


def test_truncation_and_float32():
    long, short = make(), make(truncation=3)
    with torch.no_grad():
        long.gamma.copy_(short.gamma)
    kernel = long._compute(50)
    torch.testing.assert_close(short._kernel(9), kernel[:, :3], rtol=0, atol=1e-12)
    torch.testing.assert_close(long._compute(7), kernel[:, :7], rtol=0, atol=1e-12)
    torch.testing.assert_close(long.float()._compute(50), kernel.float(), rtol=0, atol=1e-5)


def test_gradients():
    average = make(2, 3)
    x = torch.randn(1, 2, 5, dtype=torch.float64)
    lengths = SequenceLengths((5,), 5, CPU)
    names = [name for name, _ in average.named_parameters()]

    def call(x, *parameters):
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(average, named, (x, lengths))

    assert torch.autograd.gradcheck(call, (x.requires_grad_(), *average.parameters()))


def test_sums_of_rotations():
    torch.manual_seed(0)
    weight = torch.randn(2, 3, 4, dtype=torch.complex128)
    rate = torch.complex(-torch.rand(3, 4).double(), torch.randn(3, 4).double())
    for length in (1, 2, 9, 30):
        lags = torch.arange(length)
        expected = (weight[..., None] * torch.exp(rate[..., None] * lags)).sum(2).real
        found = damped_rotations(weight, rate, length, torch.float64)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_rows_of_a_model():
    model = small("mega_lra_imdb", ema="complex", keep_padding=True).eval()
    batch, lengths = tokens([12, 1, 7])
    with torch.no_grad():
        together = model(batch, lengths)
        alone = [model(row[None, :n], n[None]) for row, n in zip(batch, lengths, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_training_and_a_bad_kind(tiny_listops, tmp_path):
    flags = ["--ema", "complex", "--n-dim", "4", "--truncation-length", "0"]
    assert "ComplexMovingAverage" in train(tiny_listops, tmp_path, *flags, "--max-update", "2")
    with pytest.raises(UserError, match="--ema is 'imaginary'; it must be real or complex"):
        build_moving_average("imaginary", 4, 2)
