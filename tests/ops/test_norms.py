"""Norms over the channels against PyTorch's over the last dimension."""

import pytest
import torch
import torch.nn.functional as F

from fairseq_csp.ops.norms import layer_norm, rms_norm

pytestmark = pytest.mark.usefixtures("every_implementation")


def last(function, x):
    return function(x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 7), (3, 16, 1), (2, 3, 600)], ids=str)
def test_equal_torch_in_value_and_gradient(shape):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, incoming = (
        torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
        for size in (shape, shape[1:2], shape[1:2], shape)
    )
    pairs = [
        (
            layer_norm(x, weight, bias, 1e-5),
            last(lambda y: F.layer_norm(y, shape[1:2], weight, bias, 1e-5), x),
        ),
        (
            rms_norm(x, weight, 1e-5),
            last(lambda y: F.rms_norm(y, shape[1:2], weight, 1e-5), x),
        ),
        (
            rms_norm(x, weight[:1], 1e-5),
            last(lambda y: F.rms_norm(y, shape[1:2], weight[:1].expand(shape[1]), 1e-5), x),
        ),
    ]
    for ours, theirs in pairs:
        assert torch.allclose(ours, theirs, atol=1e-12)
        gradients = [
            torch.autograd.grad(out, (x, weight, bias), incoming, allow_unused=True)
            for out in (ours, theirs)
        ]
        for our, their in zip(*gradients, strict=True):
            assert (our is None) == (their is None)
            assert our is None or torch.allclose(our, their, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_taken_in_float32(dtype):
    # the squares do not fit into float16
    x = (torch.randn(2, 64, 5) * 1000).to(dtype).requires_grad_()
    weight, bias = torch.ones(64, dtype=dtype), torch.zeros(64, dtype=dtype)
    for ours, theirs in (
        (layer_norm(x, weight, bias, 1e-5), F.layer_norm(x.float().mT, (64,)).mT),
        (rms_norm(x, weight, 1e-5), F.rms_norm(x.float().mT, (64,)).mT),
    ):
        assert ours.dtype == dtype
        assert torch.allclose(ours.float(), theirs, atol=0.02)
        (gradient,) = torch.autograd.grad(ours.sum(), x)
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_views_expanded_gradients_and_no_batch(dtype):
    whole = torch.randn(2, 12, 300).to(dtype)
    weight, bias = (torch.randn(4).to(dtype).requires_grad_() for _ in range(2))
    for batch in (2, 0):
        part = whole[:batch, 4:8, 3:-5].detach().requires_grad_()
        for norm, last in (
            (lambda x: layer_norm(x, weight, bias, 1e-5), (weight, bias)),
            (lambda x: rms_norm(x, weight, 1e-5), (weight,)),
        ):
            results = []
            for x in (part, part.detach().contiguous().requires_grad_()):
                results.append(torch.autograd.grad(norm(x).sum(), (x, *last)))
                assert results[-1][0].shape == x.shape
            assert all(map(torch.equal, *results))
