"""Attention by scores of queries and keys: softmax, squared ReLU and Laplace (arXiv 2209.10655)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairseq_csp.modules.attention import AttentionFunction, register_attention
from fairseq_csp.modules.relative_bias import SimpleRelativeBias
from fairseq_csp.modules.rows import Rows
from fairseq_csp.ops.dropout import dropout

# more scores than this (512 MiB in float32) are computed in blocks of queries, and computed again
# in the backward pass instead of being kept
MOST_SCORES = 1 << 27


class ScoreAttention(AttentionFunction):
    """``f(q k^T + bias) v``; a subclass gives the scale and the function ``f``."""

    uses_queries = True

    def forward(
        self, values: Tensor, rows: Rows, queries: Tensor, keys: Tensor, bias: nn.Module | None
    ) -> Tensor:
        """Mix (batch, channels, positions) with weights (batch, positions, positions)."""
        batch, _, positions = values.shape
        queries = queries * self.scale(queries, rows)
        size = max(1, MOST_SCORES // (batch * positions))
        if size >= positions:
            return self._block(values, rows, queries, keys, bias, 0)
        blocks = [
            checkpoint(self._block, values, rows, block, keys, bias, k * size, use_reentrant=False)
            for k, block in enumerate(queries.split(size, dim=2))
        ]
        return torch.cat(blocks, dim=2)

    def _block(
        self,
        values: Tensor,
        rows: Rows,
        queries: Tensor,
        keys: Tensor,
        bias: nn.Module | None,
        first: int,
    ) -> Tensor:
        """Mix for the queries (batch, width, count) that stand at ``first`` and after it."""
        scores = torch.bmm(queries.transpose(1, 2), keys)
        if bias is not None:
            scores = scores + bias(values.size(2), first, queries.size(2)).to(scores.dtype)
        weights = dropout(self.weights(scores, rows), self.options.dropout, self.training)
        return torch.bmm(values, weights.to(values.dtype).transpose(1, 2))

    def scale(self, queries: Tensor, rows: Rows) -> float | Tensor:
        """Return what the queries are multiplied by.

        Args:
            queries: (batch, Z, positions), any floating dtype.
            rows: which positions are valid.

        Returns:
            A number, or (batch, 1, 1) in the dtype of the queries.
        """
        raise NotImplementedError

    def weights(self, scores: Tensor, rows: Rows) -> Tensor:
        """Return the attention weights; none for padded keys.

        Args:
            scores: (batch, queries, keys), any floating dtype, with the bias.
            rows: which positions are valid.

        Returns:
            (batch, queries, keys), the dtype of the scores or wider.
        """
        raise NotImplementedError


@register_attention("softmax")
class SoftmaxAttention(ScoreAttention):
    """``softmax(q k^T / sqrt(Z) + bias) v``.

    Where the bias is itself a product of vectors at the two positions, or there is none, PyTorch's
    fused kernels serve, which keep no weights; they take no learnt bias for each distance.
    """

    def forward(
        self, values: Tensor, rows: Rows, queries: Tensor, keys: Tensor, bias: nn.Module | None
    ) -> Tensor:
        """Mix (batch, channels, positions) with weights (batch, positions, positions)."""
        # on a CPU the fused kernels drop no weights: whole matrices would take their place
        drops_on_cpu = self.training and self.options.dropout and values.device.type == "cpu"
        if isinstance(bias, SimpleRelativeBias) or drops_on_cpu:
            return super().forward(values, rows, queries, keys, bias)
        queries = queries * self.scale(queries, rows)
        if bias is not None:
            at_query, at_key = (
                rotated.t().to(queries.dtype).expand(queries.size(0), -1, -1)
                for rotated in bias.rotated(values.size(2))
            )
            queries, keys = torch.cat([queries, at_query], 1), torch.cat([keys, at_key], 1)
        return (
            F.scaled_dot_product_attention(
                *(x.transpose(1, 2).unsqueeze(1).contiguous() for x in (queries, keys, values)),
                attn_mask=None if rows.full else rows.mask.unsqueeze(1),
                dropout_p=self.options.dropout if self.training else 0.0,
                scale=1.0,
            )
            .squeeze(1)
            .transpose(1, 2)
        )

    def scale(self, queries: Tensor, rows: Rows) -> float:
        """Return ``1/sqrt(Z)`` for queries (batch, Z, positions)."""
        return queries.size(1) ** -0.5

    def weights(self, scores: Tensor, rows: Rows) -> Tensor:
        """Return the softmax over the valid keys, (batch, queries, keys) in float32 or wider."""
        if not rows.full:
            # not -inf: a chunk may have no valid key at all
            scores = scores.masked_fill(~rows.mask, torch.finfo(scores.dtype).min)
        return scores.softmax(dim=2, dtype=torch.promote_types(scores.dtype, torch.float32))


class ElementwiseAttention(ScoreAttention):
    """``f(q k^T / n + bias) v`` with ``n`` the number of valid keys."""

    def scale(self, queries: Tensor, rows: Rows) -> float | Tensor:
        """Return ``1/n``; where the rows differ (batch, 1, 1), in the dtype of the queries."""
        if rows.full:
            return 1 / rows.positions
        return (1 / rows.lengths.clamp(min=1)[:, None, None]).to(queries.dtype)

    def weights(self, scores: Tensor, rows: Rows) -> Tensor:
        """Return the function of each score, 0 for padded keys, in the scores' shape and dtype."""
        return rows.zero_padding(self.function(scores))

    def function(self, scores: Tensor) -> Tensor:
        """Return the weight of each score.

        Args:
            scores: (batch, queries, keys), any floating dtype.

        Returns:
            The same shape and dtype.
        """
        raise NotImplementedError


@register_attention("relu2")
class SquaredReluAttention(ElementwiseAttention):
    """``relu(x)^2`` of each score (arXiv 2109.08668)."""

    def function(self, scores: Tensor) -> Tensor:
        """Return ``max(x, 0)^2``, in the shape and dtype of the scores."""
        return F.relu(scores).square()


@register_attention("laplace")
class LaplaceAttention(ElementwiseAttention):
    """The Laplace function of each score (arXiv 2209.10655, section 3.3)."""

    MEAN = 0.707107
    DEVIATION = 0.282095

    def function(self, scores: Tensor) -> Tensor:
        """Return ``(1 + erf((x - mean) / (deviation * sqrt 2))) / 2``, shape and dtype as given."""
        return 0.5 * (1 + torch.erf((scores - self.MEAN) / (self.DEVIATION * math.sqrt(2))))
