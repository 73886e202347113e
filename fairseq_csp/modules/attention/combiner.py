"""Combiner-Fixed: full attention through summaries of segments (arXiv 2107.05768)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_csp.modules.attention import (
    AttentionContext,
    WideAttention,
    check_counts,
    option,
    register_attention,
)
from fairseq_csp.modules.attention._blocks import in_blocks_of_rows
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.ops.dropout import dropout


@dataclass
class CombinerOptions:
    """The function's options.

    Raises:
        UserError: the segment is below 1.
    """

    segment: int | None = option(
        None, "positions of a segment (default: the power of two nearest to sqrt(max_positions))"
    )
    pool: str = option(
        "max", "how a segment's queries and keys are summarised", choices=("max", "mean", "sum")
    )

    def __post_init__(self) -> None:
        check_counts("combiner", self, segment=1)


@register_attention("combiner", options=CombinerOptions)
class CombinerAttention(WideAttention):
    """Softmax over the keys of a position's own segment and the summaries of all segments.

    Segment t is summarised by ``kbar_t = pool(k)``, ``qbar_t = pool(q)`` and ``vbar_t``, the
    softmax attention of ``qbar_t`` inside the segment; segments count from the row's start and the
    last may be shorter. No parameters. Dropout acts on the weights inside a segment.
    """

    def __init__(self, context: AttentionContext, options: CombinerOptions | None = None) -> None:
        super().__init__(context, options)
        self.segment = self.options.segment or nearest_power(math.sqrt(self.reach))

    def mix_wide(
        self, values: Tensor, lengths: SequenceLengths, queries: Tensor, keys: Tensor
    ) -> Tensor:
        """Mix (batch * heads, channels, positions)."""
        positions = values.size(2)
        per_row = positions * (self.segment + -(-positions // self.segment))
        return in_blocks_of_rows(self._mix, per_row, lengths, values, queries, keys)

    def _mix(
        self, lengths: SequenceLengths, values: Tensor, queries: Tensor, keys: Tensor
    ) -> Tensor:
        positions = values.size(2)
        # (batch, segments, width, segment)
        values, queries, keys = map(self._cut, (values, queries, keys))
        at = torch.arange(queries.size(1) * self.segment, device=values.device)
        # (batch, segments, 1, segment)
        padded = (at >= lengths.tensor[:, None]).view(len(values), -1, 1, self.segment)
        queries = queries * queries.size(2) ** -0.5
        pooled_queries, pooled_keys = (self._pool(x, padded) for x in (queries, keys))
        summaries = self._hide(pooled_queries.transpose(2, 3) @ keys, padded).softmax(3)
        # (batch, channels, segments)
        summaries = (values @ summaries.transpose(2, 3)).squeeze(3).transpose(1, 2)
        near = self._hide(queries.transpose(2, 3) @ keys, padded)
        far = queries.transpose(2, 3) @ pooled_keys.squeeze(3).transpose(1, 2).unsqueeze(1)
        far = self._hide(far, padded[:, :, 0, 0][:, None, None])
        weights = torch.cat([near, far], dim=3).softmax(3)
        near, far = weights.split([near.size(3), far.size(3)], dim=3)
        near = dropout(near, self.context.dropout, self.training)
        mixed = values @ near.transpose(2, 3) + summaries.unsqueeze(1) @ far.transpose(2, 3)
        return mixed.transpose(1, 2).flatten(2)[:, :, :positions]

    def _cut(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.size(2) % self.segment))
        return x.unflatten(2, (-1, self.segment)).transpose(1, 2)

    def _pool(self, x: Tensor, padded: Tensor) -> Tensor:
        """Summarise (batch, segments, width, segment) to (batch, segments, width, 1)."""
        if self.options.pool == "max":
            # the first of equal ones; amax would share the gradient among them
            largest = x.detach().masked_fill(padded, -torch.inf).argmax(3, keepdim=True)
            return x.gather(3, largest)
        total = x.sum(3, keepdim=True)
        if self.options.pool == "sum":
            return total
        return total / (~padded).sum(3, keepdim=True).clamp(min=1)

    @staticmethod
    def _hide(scores: Tensor, padded: Tensor) -> Tensor:
        # not -inf: a segment may have no valid position
        return scores.masked_fill(padded, torch.finfo(scores.dtype).min)


def nearest_power(number: float) -> int:
    """Return the power of two that is nearest to a number of at least 1."""
    lower = 2 ** int(math.log2(number))
    return lower if number - lower <= 2 * lower - number else 2 * lower
