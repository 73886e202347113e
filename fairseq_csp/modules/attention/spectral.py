"""A learnt filter in the Fourier domain of an image: spectral gating (arXiv 2304.06446)."""

import torch
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import (
    AttentionContext,
    NoOptions,
    ValueAttention,
    register_attention,
)
from fairseq_csp.modules.attention._windows import check_grid
from fairseq_csp.modules.lengths import SequenceLengths


@register_attention("spectral")
class SpectralGating(ValueAttention):
    """``irfft2(rfft2(v) * w)`` over the grid, with a complex number for each frequency and channel.

    GFNet's filter (arXiv 2107.00645), used by SpectFormer in its first layers. Parameter:
    ``complex_weight`` (rows, columns // 2 + 1, channels, 2), at first N(0, 0.02). Images of one
    size only. Cost n log n.

    Raises:
        UserError: the positions are not those of an image.
    """

    images_only = True

    def __init__(self, context: AttentionContext, options: NoOptions | None = None) -> None:
        super().__init__(context, options)
        if context.grid is None:
            raise UserError("--attention spectral is for images; for text there is fnet")
        rows, columns = context.grid
        shape = (rows, columns // 2 + 1, context.value_dim, 2)
        self.complex_weight = nn.Parameter(torch.randn(shape) * 0.02)

    def forward(self, values: Tensor, lengths: SequenceLengths) -> Tensor:
        """Filter (batch, channels, positions), in float32 or wider."""
        check_grid(self.context, values.size(2))
        with torch.autocast(values.device.type, enabled=False):
            dtype = torch.promote_types(values.dtype, torch.float32)
            image = lengths.zero_padding(values).to(dtype).unflatten(2, self.context.grid)
            weight = torch.view_as_complex(self.complex_weight.to(dtype).contiguous())
            filtered = torch.fft.rfft2(image) * weight.permute(2, 0, 1)
            mixed = torch.fft.irfft2(filtered, s=self.context.grid)
        return mixed.flatten(2).to(values.dtype)
