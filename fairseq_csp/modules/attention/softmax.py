"""Softmax attention (arXiv 1706.03762), with a relative position bias where there is one."""

import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_csp.modules.attention import register_attention
from fairseq_csp.modules.attention._scores import (
    ScoreAttention,
    has_kernel_as,
    softmax_of_valid,
    with_rotary_bias,
)
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.relative_bias import SimpleRelativeBias


@register_attention("softmax")
class SoftmaxAttention(ScoreAttention):
    """``softmax(q k^T / sqrt(Z) + bias) v``.

    Where the bias is itself a product of vectors at the two positions, or there is none, PyTorch's
    fused kernels serve, which keep no weights; they take no learnt bias for each distance.
    """

    graphable = True

    of_scores_alone = True

    def mix(
        self,
        values: Tensor,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: nn.Module | None,
    ) -> Tensor:
        """Mix (batch * heads, channels, positions)."""
        dropout = self.context.dropout if self.training else 0.0
        width = queries.size(1) * (1 if bias is None else 2)
        # on a CPU the fused kernels drop no weights and want one width: whole matrices would take
        # their place
        refused = values.device.type == "cpu" and (dropout or width != values.size(1))
        if isinstance(bias, SimpleRelativeBias) or refused:
            return super().mix(values, lengths, queries, keys, bias)
        queries = queries * self.scale(queries, lengths)
        if bias is not None:
            queries, keys = with_rotary_bias(queries, keys, bias)
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

    @has_kernel_as("softmax")
    def weights(self, scores: Tensor, lengths: SequenceLengths) -> Tensor:
        """Return the softmax over the valid keys, (batch, queries, keys) in float32 or wider."""
        return softmax_of_valid(scores, lengths)
