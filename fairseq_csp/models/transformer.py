"""The Transformer encoder (arXiv 1706.03762), as in the Long Range Arena (arXiv 2011.04006)."""

import math

from fairseq.data import Dictionary
from fairseq.modules import LayerNorm
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.models.config import LRAConfig, attention_options
from fairseq_csp.modules.attention import attention_class
from fairseq_csp.modules.embeddings import source_embedding
from fairseq_csp.modules.pooling import pool
from fairseq_csp.modules.positions import LearnedPositions, SinusoidalPositions
from fairseq_csp.modules.rows import Rows
from fairseq_csp.modules.transformer_layer import (
    SelfAttention,
    TransformerEncoderLayer,
    ValueAttention,
)
from fairseq_csp.ops.dropout import dropout


class TransformerEncoder(nn.Module):
    """Embedding, absolute positions, Transformer layers and pooling.

    Args:
        cfg: the model's configuration.
        dictionary: symbols of the source; None for images.

    Raises:
        UserError: the heads do not divide the channels, or the attention function needs queries.
    """

    def __init__(self, cfg: LRAConfig, dictionary: Dictionary | None) -> None:
        super().__init__()
        self.cfg = cfg
        dim = cfg.encoder_embed_dim
        self.embed_tokens = source_embedding(dictionary, dim)
        positions = LearnedPositions if cfg.encoder_learned_pos else SinusoidalPositions
        # fairseq numbers a text's positions from behind the padding symbol
        offset = 0 if dictionary is None else dictionary.pad() + 1
        self.embed_positions = positions(cfg.max_positions, dim, offset)
        self.embed_scale = 1.0 if cfg.encoder_learned_pos else math.sqrt(dim)
        self.turns = cfg.encoder_layers if cfg.tie_layer_weights else 1
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(
                _build_attention(cfg, range(first, first + self.turns)),
                dim,
                cfg.encoder_ffn_embed_dim,
                activation_fn=cfg.activation_fn,
                dropout=cfg.dropout,
                hidden_dropout=cfg.act_dropout,
            )
            for first in range(0, cfg.encoder_layers, self.turns)
        )
        self.emb_layer_norm = LayerNorm(dim) if cfg.encoder_normalize_before else None

    def forward(self, source: Tensor, rows: Rows) -> Tensor:
        """Encode rows to one vector each.

        Args:
            source: (batch, positions), symbols (int64) or pixels (floating).
            rows: valid positions of each row.

        Returns:
            (batch, dim), float32 or wider.
        """
        x = self.embed_tokens(source) * self.embed_scale + self.embed_positions(source.size(1))
        if self.emb_layer_norm is not None:
            x = self.emb_layer_norm(x)
        x = dropout(x, self.cfg.dropout, self.training)
        x = rows.zero_padding(x.permute(0, 2, 1)).permute(2, 0, 1)
        for layer in self.layers:
            for turn in range(self.turns):
                x = layer(x, rows, turn)
        return pool(x.permute(1, 2, 0), rows, self.cfg.sen_rep_type)


def _build_attention(cfg: LRAConfig, depths: range) -> SelfAttention | ValueAttention:
    """Build what mixes the positions at the given depths, which share it."""
    dim, heads = cfg.encoder_embed_dim, cfg.encoder_attention_heads
    if cfg.attention in (None, "softmax"):
        if dim % heads:
            raise UserError(
                f"--encoder-attention-heads {heads} does not divide --encoder-embed-dim {dim}"
            )
        return SelfAttention(dim, heads, cfg.attention_dropout)
    attention = attention_class(cfg.attention)
    if attention.uses_queries:
        raise UserError(
            f"--attention {cfg.attention} is for MEGA and FLASH; the transformer takes softmax, "
            "its own, or a function on values alone, such as csp"
        )
    return ValueAttention(dim, [attention(attention_options(cfg, depth)) for depth in depths])
