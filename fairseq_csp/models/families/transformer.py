"""The Transformer encoder (arXiv 1706.03762), as in the Long Range Arena (arXiv 2011.04006)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.modules import LayerNorm
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.models.families._shared import (
    AAN,
    CIFAR10,
    IMDB,
    LISTOP,
    PF32,
    PF128,
    BlockOptions,
    image_grid,
)
from fairseq_csp.models.family import Encoder, build_encoder_attention, register_family
from fairseq_csp.modules.attention import (
    AttentionContext,
    CarriedAttention,
    HeadAttention,
    QueryKeyAttention,
    ValueAttention,
    option,
)
from fairseq_csp.modules.embeddings import source_embedding
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.pooling import pool
from fairseq_csp.modules.positions import LearnedPositions, SinusoidalPositions
from fairseq_csp.modules.transformer_layer import (
    MultiHeadAttention,
    TransformerEncoderLayer,
    start_stream,
)
from fairseq_csp.ops.dropout import dropout


@dataclass
class TransformerOptions(BlockOptions):
    """Flags of the Transformer."""

    encoder_attention_heads: int = option(4, "heads of the transformer", needs="heads")
    attention_dropout: float = option(
        0.1, "probability of dropping an attention weight", needs="dropout"
    )
    encoder_learned_pos: bool = option(False, "learn the transformer's positions, not sinusoids")
    tie_layer_weights: bool = option(False, "all layers of the transformer share their weights")


def _sizes(
    dim: int, ffn: int, layers: int, heads: int, out: int = 0, **others: object
) -> dict[str, object]:
    return {
        "encoder_normalize_before": True,
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": ffn,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "classifier_out_dim": out or ffn,
        **others,
    }


@register_family(
    "transformer",
    options=TransformerOptions,
    architectures={
        "transformer_lra_listop": LISTOP
        | _sizes(512, 2048, 6, 8, tie_layer_weights=True, apply_bert_init=True),
        "transformer_lra_imdb": IMDB | _sizes(256, 1024, 4, 4, apply_bert_init=True),
        "transformer_lra_aan": AAN | _sizes(128, 512, 4, 4),
        "transformer_lra_cifar10": CIFAR10 | _sizes(64, 128, 1, 8),
        "transformer_lra_pf32": PF32 | _sizes(128, 128, 1, 4, out=256, max_positions=1026),
        # not published; about as many parameters as the task's MEGA (within 15 %)
        "transformer_lra_pf128": PF128 | _sizes(128, 384, 2, 4, out=256),
    },
)
class TransformerEncoder(Encoder):
    """Embedding, absolute positions, Transformer layers and pooling.

    Args:
        cfg: the model's configuration.
        dictionary: symbols of the source; None for images.

    Raises:
        UserError: the heads do not divide the channels.
    """

    takes = (ValueAttention, QueryKeyAttention, HeadAttention)
    positions_first = True

    def __init__(self, cfg: Any, dictionary: Dictionary | None) -> None:
        super().__init__()
        self.cfg = cfg
        dim = cfg.encoder_embed_dim
        self.embed_tokens = source_embedding(dictionary, dim)
        positions = LearnedPositions if cfg.encoder_learned_pos else SinusoidalPositions
        # fairseq numbers a text's positions from behind the padding symbol
        offset = 0 if dictionary is None else dictionary.pad() + 1
        self.embed_positions = positions(cfg.max_positions, dim, offset)
        self.embed_scale = 1.0 if cfg.encoder_learned_pos else math.sqrt(dim)
        self.repeats = cfg.encoder_layers if cfg.tie_layer_weights else 1
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(
                build_layer_attention(cfg, layer),
                dim,
                cfg.encoder_ffn_embed_dim,
                activation_fn=cfg.activation_fn,
                dropout=cfg.dropout,
                hidden_dropout=cfg.act_dropout,
            )
            for layer in range(0, cfg.encoder_layers, self.repeats)
        )
        self.emb_layer_norm = LayerNorm(dim) if cfg.encoder_normalize_before else None

    @classmethod
    def own_attention(cls, cfg: Any) -> str:
        """Return the name of the Transformer's attention function."""
        return "softmax"

    @property
    def packable(self) -> bool:
        """Whether only the positions, the attention and the pooling know of rows."""
        return self.attention_packs()

    def _positions(self, source: Tensor, lengths: SequenceLengths) -> Tensor:
        """Return the vectors of each position of a row (positions, dim)."""
        if not lengths.packed:
            return self.embed_positions(source.size(1))
        table = self.embed_positions(max(lengths.host))
        return torch.cat([table[:length] for length in lengths.host])

    def forward(self, source: Tensor, lengths: SequenceLengths) -> Tensor:
        """Encode rows to one vector each.

        Args:
            source: (batch, positions), symbols (int64) or pixels (floating).
            lengths: valid positions of each row.

        Returns:
            (batch, dim), float32 or wider.
        """
        x = self.embed_tokens(source) * self.embed_scale + self._positions(source, lengths)
        if self.emb_layer_norm is not None:
            x = self.emb_layer_norm(x)
        x = dropout(x, self.cfg.dropout, self.training)
        x = lengths.zero_padding(x.permute(0, 2, 1)).permute(2, 0, 1)
        stream = start_stream(self.layers, source.size(0))
        for layer in self.layers:
            for repeat in range(self.repeats):
                x = layer(x, lengths, repeat, stream)
        return pool(x.permute(1, 2, 0), lengths, self.cfg.sen_rep_type)


def build_layer_attention(
    cfg: Any, layer: int, rotary: bool = False
) -> MultiHeadAttention | HeadAttention | CarriedAttention:
    """Build what mixes the positions in a layer of a Transformer.

    Args:
        cfg: the model's configuration.
        layer: index of the layer, from 0.
        rotary: rotate queries and keys by their positions.

    Raises:
        UserError: the heads do not divide the channels, or the family cannot take the function.
    """
    dim, heads = cfg.encoder_embed_dim, cfg.encoder_attention_heads
    context = AttentionContext(
        value_dim=dim,
        query_dim=dim,
        heads=heads,
        max_positions=cfg.max_positions,
        grid=image_grid(cfg),
        layer=layer,
        num_layers=cfg.encoder_layers,
        dropout=cfg.attention_dropout,
        rotary=rotary,
    )
    attention = build_encoder_attention(cfg, context, carries=True)
    if attention.uses_heads and dim % heads:
        raise UserError(
            f"--encoder-attention-heads {heads} does not divide --encoder-embed-dim {dim}"
        )
    if isinstance(attention, HeadAttention | CarriedAttention):
        return attention
    return MultiHeadAttention(dim, attention)
