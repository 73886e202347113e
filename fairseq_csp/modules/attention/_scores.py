"""What attention by a score of each query and key has in common."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairseq_csp.modules.attention._base import AttentionMaps, QueryKeyAttention
from fairseq_csp.modules.attention._recomputed import attend_in_blocks, blocks_pay
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.relative_bias import RotaryRelativeBias, SimpleRelativeBias
from fairseq_csp.ops.dropout import dropout

# more scores than this (512 MiB in float32) are computed in blocks of queries, and computed again
# in the backward pass instead of being kept
MOST_SCORES = 1 << 27


class ScoreAttention(QueryKeyAttention):
    """``f(q k^T + bias) v`` for each head; a subclass gives the scale and the function ``f``.

    Attributes:
        blocks_of_queries: whether the weights of a query depend on its own scores alone.
        of_scores_alone: whether :meth:`weights` is all there is to them, without parameters: then
            no more than a block of them is ever kept.
    """

    uses_bias = True
    blocks_of_queries: ClassVar[bool] = True
    of_scores_alone: ClassVar[bool] = False

    def mix(
        self,
        values: Tensor,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: nn.Module | None,
    ) -> Tensor:
        """Mix (batch * heads, channels, positions)."""
        batch, _, positions = values.shape
        queries = queries * self.scale(queries, lengths)
        # luna's few packed vectors are queries or keys of their own number
        square = queries.size(2) == positions
        many = square and blocks_pay(queries, self.kernel())
        known = bias is None or isinstance(bias, SimpleRelativeBias | RotaryRelativeBias)
        if self.of_scores_alone and known and many and not torch.compiler.is_compiling():
            p = self.context.dropout if self.training else 0.0
            line = bias.line(positions) if isinstance(bias, SimpleRelativeBias) else None
            if isinstance(bias, RotaryRelativeBias):
                queries, keys = with_rotary_bias(queries, keys, bias)
            weights = self.weights, self.kernel()
            return attend_in_blocks(*weights, lengths, values, queries, keys, line, p)
        size = max(1, MOST_SCORES // (batch * positions))
        if size >= positions or not self.blocks_of_queries:
            return self._block(values, lengths, queries, keys, bias, 0)
        blocks = [
            checkpoint(
                self._block, values, lengths, block, keys, bias, k * size, use_reentrant=False
            )
            for k, block in enumerate(queries.split(size, dim=2))
        ]
        return torch.cat(blocks, dim=2)

    def _block(
        self,
        values: Tensor,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: nn.Module | None,
        first: int,
    ) -> Tensor:
        """Mix for the queries (batch, width, count) that stand at ``first`` and after it."""
        weights = self._weights(lengths, queries, keys, bias, first)
        weights = dropout(weights, self.context.dropout, self.training)
        return torch.bmm(values, weights.to(values.dtype).transpose(1, 2))

    def _weights(
        self,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: Callable[[int, int, int], Tensor] | None,
        first: int,
    ) -> Tensor:
        scores = torch.bmm(queries.transpose(1, 2), keys)
        if bias is not None:
            # one for all heads, or (heads, queries, keys)
            added = bias(keys.size(2), first, queries.size(2)).to(scores.dtype)
            scores = scores.unflatten(0, (-1, self.context.heads)).add(added).flatten(0, 1)
        return self.weights(scores, lengths)

    def attention_map(
        self,
        values: Tensor,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: nn.Module | None = None,
    ) -> AttentionMaps:
        """Return the weights of each head."""
        heads = self.context.heads
        queries, keys = self.fold(queries[:1]), self.fold(keys[:1])
        first = SequenceLengths(lengths.host[:1], lengths.positions, lengths.device).repeat(heads)
        queries = queries * self.scale(queries, first)
        weights = self._weights(first, queries, keys, bias, 0)
        return AttentionMaps("head" if heads > 1 else "", weights)

    def scale(self, queries: Tensor, lengths: SequenceLengths) -> float | Tensor:
        """Return what the queries are multiplied by.

        Args:
            queries: (batch, Z, positions), any floating dtype.
            lengths: which positions are valid.

        Returns:
            A number, or (batch, 1, 1) in the dtype of the queries.
        """
        raise NotImplementedError

    def kernel(self) -> str | None:
        """Return what of ``fairseq_csp.ops.scores.KINDS`` gives the same weights, if any does."""
        return getattr(self.weights, "kernel", None)

    def weights(self, scores: Tensor, lengths: SequenceLengths) -> Tensor:
        """Return the attention weights; none for padded keys.

        Args:
            scores: (batch, queries, keys), any floating dtype, with the bias.
            lengths: which positions are valid.

        Returns:
            (batch, queries, keys), the dtype of the scores or wider.
        """
        raise NotImplementedError


def has_kernel_as(kind: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Mark a method of which a kernel gives the numbers; one that overrides it has no mark.

    Args:
        kind: one of ``fairseq_csp.ops.scores.KINDS``.
    """

    def mark(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        method.kernel = kind
        return method

    return mark


def with_rotary_bias(queries: Tensor, keys: Tensor, bias: nn.Module) -> tuple[Tensor, Tensor]:
    """Let products of queries and keys, both (batch, width, positions), hold a rotary bias."""
    at_query, at_key = (
        rotated.t().to(queries.dtype).expand(queries.size(0), -1, -1)
        for rotated in bias.rotated(queries.size(2))
    )
    return torch.cat([queries, at_query], 1), torch.cat([keys, at_key], 1)


def softmax_of_valid(scores: Tensor, lengths: SequenceLengths) -> Tensor:
    """Return the softmax over the valid keys.

    Args:
        scores: (batch, queries, keys), any floating dtype.
        lengths: which keys are valid; without any the weights are those of equal scores.

    Returns:
        (batch, queries, keys) in float32 or wider.
    """
    if not lengths.full:
        # not -inf: a chunk may have no valid key at all
        scores = scores.masked_fill(~lengths.mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=2, dtype=torch.promote_types(scores.dtype, torch.float32))


class ElementwiseAttention(ScoreAttention):
    """``f(q k^T / n + bias) v`` with ``n`` the number of valid keys."""

    of_scores_alone = True

    def scale(self, queries: Tensor, lengths: SequenceLengths) -> float | Tensor:
        """Return ``1/n``; where the lengths differ (batch, 1, 1), in the dtype of the queries."""
        if lengths.full:
            return 1 / lengths.positions
        wide = torch.promote_types(queries.dtype, torch.float32)
        counts = lengths.tensor.clamp(min=1).to(wide)
        return counts.reciprocal().to(queries.dtype)[:, None, None]

    def weights(self, scores: Tensor, lengths: SequenceLengths) -> Tensor:
        """Return the function of each score, 0 for padded keys, in the scores' shape and dtype."""
        return lengths.zero_padding(self.function(scores))

    def kernel(self) -> str | None:
        """Return what of ``fairseq_csp.ops.scores.KINDS`` gives the same weights, if any does."""
        plain = type(self).weights is ElementwiseAttention.weights
        return getattr(self.function, "kernel", None) if plain else None

    def function(self, scores: Tensor) -> Tensor:
        """Return the weight of each score.

        Args:
            scores: (batch, queries, keys), any floating dtype.

        Returns:
            The same shape and dtype.
        """
        raise NotImplementedError
