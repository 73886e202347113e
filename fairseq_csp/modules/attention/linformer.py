"""Linformer: keys and values compressed along the positions (arXiv 2006.04768)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fairseq_csp.modules.attention import (
    AttentionContext,
    WideAttention,
    check_counts,
    option,
    register_attention,
)
from fairseq_csp.modules.attention._blocks import in_blocks_of_rows
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.relative_bias import check_reach
from fairseq_csp.ops.dropout import dropout


@dataclass
class LinformerOptions:
    """The function's options.

    Raises:
        UserError: the size is below 1.
    """

    size: int = option(256, "positions to which keys and values are compressed")
    share: bool = option(False, "all heads compress by one map")

    def __post_init__(self) -> None:
        check_counts("linformer", self, size=1)


@register_attention("linformer", options=LinformerOptions)
class LinformerAttention(WideAttention):
    """``y = softmax(q (E k)^T / sqrt(Z)) (E v)`` with the columns of E of the row's positions.

    Parameter ``projection`` E (heads, size, P), or (1, size, P) where heads share it; at first
    N(0, 0.02). The softmax is over the compressed positions, none of which is masked.
    """

    def __init__(self, context: AttentionContext, options: LinformerOptions | None = None) -> None:
        super().__init__(context, options)
        maps = 1 if self.options.share else context.heads
        self.projection = nn.Parameter(torch.empty(maps, self.options.size, self.reach))
        nn.init.normal_(self.projection, std=0.02)

    def mix_wide(
        self, values: Tensor, lengths: SequenceLengths, queries: Tensor, keys: Tensor
    ) -> Tensor:
        """Mix (batch * heads, channels, positions)."""
        longest = max(lengths.host)
        check_reach(longest, self.reach, "linformer's projection")
        values, keys = (self._compress(x[:, :, :longest]) for x in (values, keys))
        keys = keys * keys.size(1) ** -0.5
        return in_blocks_of_rows(
            self._mix, queries.size(2) * self.options.size, lengths, values, queries, keys
        )

    def _compress(self, x: Tensor) -> Tensor:
        """Compress (batch * heads, width, n) to (batch * heads, width, size)."""
        batch, width, positions = x.shape
        maps = self.projection[:, :, :positions].to(x.dtype)
        # one product for each map: all rows of a batch share it; what is contiguous stays so
        if x.stride(1) == 1:
            apart = x.transpose(1, 2).unflatten(0, (-1, len(maps)))
            x = apart.permute(1, 2, 0, 3).flatten(2)
        else:
            x = x.unflatten(0, (-1, len(maps))).transpose(0, 1).flatten(1, 2).transpose(1, 2)
        compressed = (maps @ x).unflatten(2, (-1, width))
        return compressed.permute(2, 0, 3, 1).reshape(batch, width, -1)

    def _mix(
        self, lengths: SequenceLengths, values: Tensor, queries: Tensor, keys: Tensor
    ) -> Tensor:
        weights = (queries.transpose(1, 2) @ keys).softmax(2)
        weights = dropout(weights, self.context.dropout, self.training)
        # in this order the gradient of the weights is contiguous
        return (weights @ values.transpose(1, 2)).transpose(1, 2)
