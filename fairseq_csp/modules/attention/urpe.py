"""Softmax times a learnt factor of each distance: URPE-based attention (arXiv 2205.13401)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import (
    AttentionContext,
    check_counts,
    option,
    register_attention,
)
from fairseq_csp.modules.attention._scores import ScoreAttention, softmax_of_valid
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.relative_bias import by_distance, check_reach


@dataclass
class UrpeOptions:
    """The function's options.

    Raises:
        UserError: the number of buckets is negative.
    """

    buckets: int = option(
        0, "distances of each sign share their numbers in so many buckets, wider ones farther away "
        "(0: one number for each distance)"
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_counts("urpe", self, buckets=0)


@register_attention("urpe", options=UrpeOptions)
class UrpeAttention(ScoreAttention):
    """``y_i = sum_j softmax_j(q_i.k_j / sqrt(Z) + B[j-i]) * F[j-i] v_j``.

    Parameters: ``factor`` F (heads, 2P - 1), at first 1, entry P - 1 + d for the key d after the
    query; where no relative position bias is brought (in the Transformer), ``bias`` B of the same
    shape, at first N(0, 0.02). With buckets the shape is (heads, 2 * buckets + 1).

    Raises:
        UserError: there are more buckets than distances to fill them.
    """

    bucket: Tensor | None

    def __init__(self, context: AttentionContext, options: UrpeOptions | None = None) -> None:
        super().__init__(context, options)
        buckets = self.options.buckets
        size = 2 * (buckets or self.reach - 1) + 1
        self.factor = nn.Parameter(torch.ones(context.heads, size))
        if not context.has_bias:
            self.bias = nn.Parameter(torch.empty(context.heads, size))
            nn.init.normal_(self.bias, std=0.02)
        bucket = bucket_of_distance(self.reach, buckets) if buckets else None
        self.register_buffer("bucket", bucket, persistent=False)

    def scale(self, queries: Tensor, lengths: SequenceLengths) -> float:
        """Return ``1/sqrt(Z)`` for queries (batch, Z, positions)."""
        return queries.size(1) ** -0.5

    def weights(self, scores: Tensor, lengths: SequenceLengths) -> Tensor:
        """Return the softmax over the valid keys, in float32 or wider."""
        return softmax_of_valid(scores, lengths)

    def _weights(
        self,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: Callable[[int, int, int], Tensor] | None,
        first: int,
    ) -> Tensor:
        if not self.context.has_bias:
            bias = partial(self._spread, self.bias)
        weights = super()._weights(lengths, queries, keys, bias, first)
        factor = self._spread(self.factor, keys.size(2), first, queries.size(2))
        return weights.unflatten(0, (-1, self.context.heads)).mul(factor).flatten(0, 1)

    def _spread(self, numbers: Tensor, positions: int, first: int, count: int) -> Tensor:
        check_reach(positions, self.reach, "urpe's factor")
        if self.bucket is not None:
            numbers = numbers[:, self.bucket]
        return by_distance(numbers, positions, first, count)


def bucket_of_distance(reach: int, buckets: int) -> Tensor:
    """Return which number serves each distance when far ones share theirs (arXiv 1910.10683).

    The shorter half of the buckets holds one distance each, the others hold ranges that grow
    geometrically up to ``reach``.

    Args:
        reach: most positions of a row, P.
        buckets: of each sign.

    Returns:
        (2P - 1,) int64: entry P - 1 + d is the bucket of distance d, ``buckets`` that of 0.

    Raises:
        UserError: some bucket would hold no distance.
    """
    distances = torch.arange(1, reach, dtype=torch.double)
    exact = buckets // 2 + 1
    growth = (distances / exact).log() / math.log(max(reach, 2) / exact)
    far = exact + (growth * (buckets - exact + 1)).floor().clamp(max=buckets - exact)
    bucket = torch.where(distances < exact, distances, far).long()
    if bucket.unique().numel() < buckets:
        raise UserError(
            f"--urpe-buckets is {buckets}; the {reach - 1} distances of {reach} positions do not "
            "fill so many: choose fewer"
        )
    return buckets + torch.cat([-bucket.flip(0), bucket.new_zeros(1), bucket])
