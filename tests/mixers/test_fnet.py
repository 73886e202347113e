"""FNet against naive Fourier matrices."""

import pytest
import torch

from fairseq_csp import build_attention
from fairseq_csp.errors import UserError


def fourier(n):
    angles = torch.arange(n, dtype=torch.float64)
    return torch.exp(-2j * torch.pi * torch.outer(angles, angles) / n)


@pytest.mark.parametrize("channels", [True, False])
@pytest.mark.parametrize("norm", ["ortho", "none"])
@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_naive_matrices(width, norm, channels):
    torch.manual_seed(0)
    counts = (13, 1, 8, 2, 13)
    mixer = build_attention("fnet", value_dim=width, norm=norm, channels=channels)
    values = torch.randn(5, 13, width, dtype=torch.float64)
    out = mixer(values, torch.tensor(counts))
    for row, n in enumerate(counts):
        over_channels = fourier(width) if channels else torch.eye(width, dtype=torch.complex128)
        expected = (fourier(n) @ values[row, :n].to(torch.complex128) @ over_channels).real
        if norm == "ortho":
            expected /= (n * (width if channels else 1)) ** 0.5
        torch.testing.assert_close(out[row, :n], expected, rtol=0, atol=1e-12)
        # the real part is even in the axes transformed
        mirrored = out[row, :n].roll(-1, 0).flip(0)
        if channels:
            mirrored = mirrored.roll(-1, 1).flip(1)
        torch.testing.assert_close(out[row, :n], mirrored, rtol=0, atol=1e-12)


def test_large_prime_length():
    values = torch.randn(1, 4099, 2)
    out = build_attention("fnet", value_dim=2)(values)
    again = torch.fft.fft2(values.double()).real.float() / (2 * 4099) ** 0.5
    torch.testing.assert_close(out, again, rtol=0, atol=1e-5)


def test_gradient_of_the_gradient():
    values = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    mixer = build_attention("fnet", value_dim=3)
    lengths = torch.tensor([5, 4])
    assert torch.autograd.gradcheck(lambda v: mixer(v, lengths), values)
    assert torch.autograd.gradgradcheck(mixer, values)


def test_bad_norm():
    with pytest.raises(UserError, match="--fnet-norm is 'unit'; it must be one of ortho, none"):
        build_attention("fnet", value_dim=3, norm="unit")
