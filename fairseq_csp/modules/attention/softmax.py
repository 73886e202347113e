"""Softmax attention (arXiv 1706.03762), with a relative position bias where there is one."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_csp.modules.attention import register_attention
from fairseq_csp.modules.attention._scores import ScoreAttention, softmax_of_valid
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.relative_bias import SimpleRelativeBias


@register_attention("softmax")
class SoftmaxAttention(ScoreAttention):
    """``softmax(q k^T / sqrt(Z) + bias) v``.

    Where the bias is itself a product of vectors at the two positions, or there is none, PyTorch's
    fused kernels serve, which keep no weights; they take no learnt bias for each distance.
    """

    def mix(
        self,
        values: Tensor,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: nn.Module | None,
    ) -> Tensor:
        """Mix (batch * heads, channels, positions)."""
        # on a CPU the fused kernels drop no weights: whole matrices would take their place
        dropout = self.context.dropout if self.training else 0.0
        if isinstance(bias, SimpleRelativeBias) or (dropout and values.device.type == "cpu"):
            return super().mix(values, lengths, queries, keys, bias)
        queries = queries * self.scale(queries, lengths)
        if bias is not None:
            at_query, at_key = (
                rotated.t().to(queries.dtype).expand(queries.size(0), -1, -1)
                for rotated in bias.rotated(values.size(2))
            )
            queries, keys = torch.cat([queries, at_query], 1), torch.cat([keys, at_key], 1)
        inputs = (x.transpose(1, 2).unsqueeze(1).contiguous() for x in (queries, keys, values))
        queries, keys, values = inputs
        return (
            F.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=None if lengths.full else lengths.mask.unsqueeze(1),
                dropout_p=dropout,
                scale=1.0,
            )
            .squeeze(1)
            .transpose(1, 2)
        )

    def scale(self, queries: Tensor, lengths: SequenceLengths) -> float:
        """Return ``1/sqrt(Z)`` for queries (batch, Z, positions)."""
        return queries.size(1) ** -0.5

    def weights(self, scores: Tensor, lengths: SequenceLengths) -> Tensor:
        """Return the softmax over the valid keys, (batch, queries, keys) in float32 or wider."""
        return softmax_of_valid(scores, lengths)
