"""Attention among channels instead of positions: DaViT's channel attention (arXiv 2204.03645)."""

import torch
from torch import Tensor

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import (
    AttentionContext,
    NoOptions,
    register_attention,
)
from fairseq_csp.modules.attention._base import WideAttention
from fairseq_csp.modules.lengths import SequenceLengths


@register_attention("channel")
class ChannelAttention(WideAttention):
    """``y = q W^T`` with ``W = softmax(k^T v / sqrt(Z))`` over its last axis (section 3.3).

    Each head's W (Z, Z) comes from all positions of the row, so that the view is global at a cost
    linear in them. Queries, keys and values must be equally wide.

    Raises:
        UserError: they are not.
    """

    uses_dropout = False
    families = ("transformer", "transformer_rope")

    def __init__(self, context: AttentionContext, options: NoOptions | None = None) -> None:
        super().__init__(context, options)
        if context.query_dim != context.value_dim:
            raise UserError(
                f"channel attention needs queries as wide as values, but they have "
                f"{context.query_dim} and {context.value_dim} channels"
            )

    def mix_wide(
        self, values: Tensor, lengths: SequenceLengths, queries: Tensor, keys: Tensor
    ) -> Tensor:
        """Mix (batch * heads, channels, positions), 0 at padded positions."""
        products = torch.bmm(keys, values.transpose(1, 2)) * keys.size(1) ** -0.5
        return torch.bmm(products.softmax(2), queries)
