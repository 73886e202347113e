"""The convolution with the moving average's kernel, and its gradient."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fairseq_csp.ops.autocast import outside_autocast

# sizes at which FFTs are fast, up to 2^24: their only factors are 2, 3 and 5
FAST_SIZES = sorted(
    2**a * 3**b * 5**c
    for a in range(25)
    for b in range(16)
    for c in range(11)
    if 2**a * 3**b * 5**c <= 1 << 24
)
# on a GPU they are multiples of this, so that batches of all lengths share few plans
GPU_GRAIN = 512


def circular_kernel(kernel: Tensor, skip: Tensor, positions: int) -> Tensor:
    """Lay both directions of a kernel and the residual weight on one circle.

    Args:
        kernel: (2D, lags), any floating dtype: rows [0, D) look back, rows [D, 2D) look ahead; both
            hold lag 0. No more lags than positions.
        skip: (D,), any floating dtype: weight of the position itself, beyond the moving average.
        positions: positions of the sequences it will be applied to.

    Returns:
        (D, size), the dtype of the kernel, with the :func:`fast_size` on which the directions do
        not meet.
    """
    size = fast_size(positions + kernel.size(1) - 1, kernel.device)
    back, ahead = kernel.chunk(2)
    here = back[:, :1] + ahead[:, :1] + skip.to(kernel.dtype).unsqueeze(1)
    between = back.new_zeros(back.size(0), size - 2 * kernel.size(1) + 1)
    return torch.cat([here, back[:, 1:], between, ahead[:, 1:].flip(1)], dim=1)


@outside_autocast
def convolve(x: Tensor, circle: Tensor) -> Tensor:
    """Convolve every channel with its circular kernel by one FFT.

    Args:
        x: (batch, D, positions), any floating dtype; computed in float32 or wider, under
            autocast too.
        circle: (D, size), float32 or wider, from :func:`circular_kernel`.

    Returns:
        (batch, D, positions), the dtype of ``x``.
    """
    if x.numel() == 0:
        # the FFT refuses it; so the gradients are 0
        return x * circle.sum()
    return _Convolve.apply(x, circle)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, circle: Tensor) -> Tensor:
        size = circle.size(1)
        kernel = torch.fft.rfft(circle)
        signal = _spectrum(x, size)
        averaged = torch.fft.irfft(signal * kernel, n=size)[..., : x.size(2)].to(x.dtype)
        # as the backward pass takes them; without conj_physical each use would make a copy
        ctx.save_for_backward(signal.conj_physical_(), kernel.conj_physical_())
        ctx.size = size
        return averaged

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        signal, kernel = ctx.saved_tensors
        positions = grad.size(2)
        spectrum = _spectrum(grad, ctx.size)
        grad_x = grad_circle = None
        if ctx.needs_input_grad[1]:
            grad_circle = torch.fft.irfft(_sum_of_products(spectrum, signal), n=ctx.size)
        if ctx.needs_input_grad[0]:
            product = spectrum.mul_(kernel)
            grad_x = torch.fft.irfft(product, n=ctx.size)[..., :positions].to(grad.dtype)
        return grad_x, grad_circle


def _sum_of_products(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum over the batch of the products of two tensors (batch, D, frequencies)."""
    if first.device.type != "cpu":
        return (first * second).sum(0)
    # without room for all products
    total = first.new_zeros(first.shape[1:])
    for row, other in zip(first, second, strict=True):
        total.addcmul_(row, other)
    return total


def fast_size(least: int, device: torch.device) -> int:
    """Return the smallest length, at least ``least``, for which an FFT is fast on a device.

    A GPU's library plans each length anew: there it is one of few.
    """
    grain = 1 if device.type == "cpu" else GPU_GRAIN
    return next(size for size in FAST_SIZES if size >= least and size % grain == 0)


def _spectrum(x: Tensor, size: int) -> Tensor:
    # the padding and the cast in one pass
    wide = torch.promote_types(x.dtype, torch.float32)
    padded = x.new_empty(x.size(0), x.size(1), size, dtype=wide)
    padded[..., : x.size(2)] = x
    padded[..., x.size(2) :] = 0
    return torch.fft.rfft(padded)
