"""Heads one after the other: cascaded group attention, EfficientViT (arXiv 2305.07027)."""

import math

import torch
from torch import Tensor, nn

from fairseq_csp.modules.attention import (
    AttentionContext,
    HeadAttention,
    NoOptions,
    register_attention,
)
from fairseq_csp.modules.attention.softmax import SoftmaxAttention
from fairseq_csp.modules.lengths import SequenceLengths


@register_attention("cga")
class CascadedGroupAttention(HeadAttention):
    """Head t attends over its share of the channels plus what head t - 1 gave (section 3.2).

    Maps: ``qkv`` (one for each head, D/h to 3 D/h) and ``out_proj`` of all heads' outputs. The
    published block's convolution of the queries belongs to images and is left out. Cost n^2.
    """

    def __init__(self, context: AttentionContext, options: NoOptions | None = None) -> None:
        super().__init__(context, options)
        dim = context.value_dim
        width = dim // context.heads
        maps = [nn.Linear(width, 3 * width) for _ in range(context.heads)]
        self.qkv = nn.ModuleList(maps)
        self.out_proj = nn.Linear(dim, dim)
        for layer in maps:
            nn.init.xavier_uniform_(layer.weight, gain=1 / math.sqrt(2))
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)
        self.attend = SoftmaxAttention(AttentionContext(width, width, dropout=context.dropout))

    def forward(self, x: Tensor, lengths: SequenceLengths) -> Tensor:
        """Mix the positions of (batch, D, positions)."""
        mixed: list[Tensor] = []
        for layer, part in zip(
            self.qkv, lengths.zero_padding(x).chunk(len(self.qkv), 1), strict=True
        ):
            part = part + mixed[-1] if mixed else part
            queries, keys, values = layer(part.transpose(1, 2)).transpose(1, 2).chunk(3, 1)
            queries, keys = self.turn(queries), self.turn(keys)
            mixed.append(lengths.zero_padding(self.attend(values, lengths, queries, keys)))
        out = self.out_proj(torch.cat(mixed, 1).transpose(1, 2)).transpose(1, 2)
        return lengths.zero_padding(out)
