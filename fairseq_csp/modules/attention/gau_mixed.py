"""Attention inside chunks and linear attention over all (arXiv 2202.10447, section 3.3)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_csp.modules.attention import (
    AttentionContext,
    QueryKeyAttention,
    check_counts,
    option,
    register_attention,
)
from fairseq_csp.modules.attention._windows import equal_windows
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.ops.dropout import dropout


@dataclass
class MixedChunkOptions:
    """The function's options.

    Raises:
        UserError: the chunk is below 1.
    """

    chunk: int = option(256, "positions that attend to one another directly")

    def __post_init__(self) -> None:
        check_counts("gau_mixed", self, chunk=1)


@register_attention("gau_mixed", options=MixedChunkOptions)
class MixedChunkAttention(QueryKeyAttention):
    """``relu(q k^T / c + bias)^2 v`` inside chunks, ``q' (sum_j k'_j v_j^T) / n`` over the row.

    The two are added. c is the number of valid positions of the chunk, n that of the row. q' and k'
    are two more affine maps of what the unit makes its queries and keys of, here as maps of q and
    k: ``gamma`` (2, Z), at first 1, and ``beta`` (2, Z), at first 0. Cost n (chunk + Z).
    """

    uses_bias = True
    families = ("flash",)

    def __init__(self, context: AttentionContext, options: MixedChunkOptions | None = None) -> None:
        super().__init__(context, options)
        self.gamma = nn.Parameter(torch.ones(2, context.query_dim))
        self.beta = nn.Parameter(torch.zeros(2, context.query_dim))

    def mix(
        self,
        values: Tensor,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: nn.Module | None,
    ) -> Tensor:
        """Mix (batch, channels, positions), in float32 or wider."""
        with torch.autocast(values.device.type, enabled=False):
            dtype = torch.promote_types(values.dtype, torch.float32)
            values, queries, keys = (x.to(dtype) for x in (values, queries, keys))
            far = self._far(values, lengths, queries, keys)
            return lengths.zero_padding(self._near(values, lengths, queries, keys, bias) + far)

    def _near(
        self,
        values: Tensor,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: nn.Module | None,
    ) -> Tensor:
        size = min(self.options.chunk, max(lengths.positions, 1))
        windows = equal_windows(lengths, size)
        counts = windows.mask.sum(2).clamp(min=1)[..., None, None]
        # (batch, chunks, width, size)
        own, others, mixed = (windows.gather(x).transpose(1, 2) for x in (queries, keys, values))
        scores = own.transpose(2, 3) @ others / counts
        if bias is not None:
            scores = scores + bias(scores.size(3)).to(scores.dtype)
        weights = F.relu(scores).square().masked_fill(~windows.mask[:, :, None], 0)
        weights = dropout(weights, self.context.dropout, self.training)
        return windows.scatter((mixed @ weights.transpose(2, 3)).transpose(1, 2))

    def _far(
        self, values: Tensor, lengths: SequenceLengths, queries: Tensor, keys: Tensor
    ) -> Tensor:
        queries, keys = (
            x * gamma[:, None] + beta[:, None]
            for x, gamma, beta in zip((queries, keys), self.gamma, self.beta, strict=True)
        )
        # a padded key is beta now, but its value is 0
        sums = values @ keys.transpose(1, 2) / lengths.tensor.clamp(min=1)[:, None, None]
        return sums @ queries
