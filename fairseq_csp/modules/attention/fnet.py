"""FNet (arXiv 2105.03824): the real part of a Fourier transform, without parameters."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from fairseq_csp.modules.attention import (
    AttentionContext,
    ValueAttention,
    option,
    register_attention,
)
from fairseq_csp.modules.lengths import SequenceLengths

NORMS = ("ortho", "none")


@dataclass
class FNetOptions:
    """The transform's options."""

    norm: str = option(
        "ortho", "FNet divides by the root of the numbers transformed, or not", choices=NORMS
    )
    channels: bool = option(True, "FNet transforms over the channels too, not positions alone")


@register_attention("fnet", options=FNetOptions)
class FNetAttention(ValueAttention):
    """``Re(F_n v F_C)`` with the Fourier matrices of the row's own ``n`` and of the channels.

    Zero padding would make it another function, so rows are transformed at their own lengths, all
    rows of a length at once. Cost ``O(n C log(n C))``; no parameters.
    """

    def __init__(self, context: AttentionContext, options: FNetOptions | None = None) -> None:
        super().__init__(context, options)
        self.dims = (1, 2) if self.options.channels else (2,)

    def forward(self, values: Tensor, lengths: SequenceLengths) -> Tensor:
        """Transform (batch, channels, positions) in float32 or wider."""
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        if lengths.full:
            return self._transform(wide).to(values.dtype)
        out = torch.zeros_like(wide)
        for n in sorted(set(lengths.host) - {0}):
            rows = lengths.kept(("rows", n), partial(rows_of_length, lengths, n))
            mixed = self._transform(wide[rows, :, :n])
            mixed = torch.nn.functional.pad(mixed, (0, values.size(2) - n))
            out = out.index_copy(0, rows, mixed)
        return out.to(values.dtype)

    def _transform(self, values: Tensor) -> Tensor:
        if values.numel() == 0:
            return values
        mixed = _RealFourier.apply(values, self.dims)
        if self.options.norm == "ortho":
            mixed = mixed / math.sqrt(math.prod(values.size(dim) for dim in self.dims))
        return mixed


def rows_of_length(lengths: SequenceLengths, length: int) -> Tensor:
    """Return the indices of the rows of one length, int64, on the device."""
    rows = [row for row, n in enumerate(lengths.host) if n == length]
    return torch.tensor(rows).to(lengths.device, non_blocking=True)


class _RealFourier(torch.autograd.Function):
    """The real part of the transform, which is its own transpose."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, dims: tuple[int, ...]) -> Tensor:
        ctx.dims = dims
        half = torch.fft.rfftn(values, dim=dims).real
        # the other half of the last axis mirrors this one, in all axes transformed
        mirrored = half[:, :, 1 : values.size(2) - half.size(2) + 1].flip(2)
        if 1 in dims:
            mirrored = mirrored.flip(1).roll(1, 1)
        return torch.cat([half, mirrored], dim=2)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return _RealFourier.apply(grad, ctx.dims), None
