"""The MEGA encoder (arXiv 2209.10655)."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from fairseq.data import Dictionary
from torch import Tensor, nn

from fairseq_csp.models.families._shared import (
    AAN,
    CIFAR10,
    IMDB,
    LISTOP,
    PF32,
    PF128,
    BlockOptions,
    GatedOptions,
    gated_context,
    image_grid,
)
from fairseq_csp.models.family import Encoder, build_encoder_attention, register_family
from fairseq_csp.modules.attention import (
    AttentionContext,
    QueryKeyAttention,
    ValueAttention,
    option,
)
from fairseq_csp.modules.embeddings import NamedEmbedding, source_embedding
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.mega_layer import GatedMovingAverage, MegaEncoderLayer
from fairseq_csp.modules.moving_average import KINDS
from fairseq_csp.modules.norms import SequenceNorm
from fairseq_csp.modules.pointwise import NormalizedFeedForward, dropout
from fairseq_csp.modules.pooling import pool


@dataclass
class MegaOptions(BlockOptions, GatedOptions):
    """Flags of MEGA."""

    ema: str = option("real", "MEGA's moving average; complex is Megalodon's", choices=tuple(KINDS))
    n_dim: int = option(16, "components of MEGA's moving average")
    chunk_size: int = option(-1, "MEGA's attention stays in chunks of this size (-1: whole row)")
    truncation_length: int | None = option(
        1024, "MEGA's moving average reaches this far (0 or less: all the way)"
    )
    normalize_embedding: bool = option(False, "MEGA normalises its embedding")
    feature_dropout: bool = option(False, "MEGA drops whole channels of a row")


def _sizes(dim: int, hidden: int, z: int, layers: int, **others: object) -> dict[str, object]:
    return {
        "activation_fn": "silu",
        "sen_rep_type": "mp",
        "encoder_embed_dim": dim,
        "encoder_hidden_dim": hidden,
        "z_dim": z,
        "encoder_layers": layers,
        "classifier_out_dim": hidden,
        **others,
    }


@register_family(
    "mega",
    options=MegaOptions,
    architectures={
        "mega_lra_listop": LISTOP | _sizes(80, 160, 64, 6),
        "mega_lra_imdb": IMDB | _sizes(128, 256, 64, 4, norm_type="scalenorm"),
        "mega_lra_aan": AAN | _sizes(128, 256, 64, 6),
        "mega_lra_cifar10": CIFAR10
        | _sizes(160, 320, 96, 8, norm_type="batchnorm", chunk_size=1024),
        "mega_lra_pf32": PF32 | _sizes(128, 256, 64, 6, norm_type="batchnorm", chunk_size=1024),
        "mega_lra_pf128": PF128
        | _sizes(64, 128, 32, 4, norm_type="batchnorm", chunk_size=16384, truncation_length=4096),
    },
)
class MegaEncoder(Encoder):
    """Embedding, MEGA layers and pooling.

    Args:
        cfg: the model's configuration.
        dictionary: symbols of the source; None for images.
    """

    takes = (ValueAttention, QueryKeyAttention)

    def __init__(self, cfg: Any, dictionary: Dictionary | None) -> None:
        super().__init__()
        self.cfg = cfg
        dim = cfg.encoder_embed_dim
        self.embed_tokens = source_embedding(dictionary, dim)
        if isinstance(self.embed_tokens, nn.Embedding):
            self.padding = dictionary.pad()
            self.embed_tokens = NamedEmbedding(self.embed_tokens)
        self.embed_norm = SequenceNorm(cfg.norm_type, dim) if cfg.normalize_embedding else None
        truncation = cfg.truncation_length
        shared = {
            "activation_fn": cfg.activation_fn,
            "norm_type": cfg.norm_type,
            "prenorm": cfg.encoder_normalize_before,
            "dropout": cfg.dropout,
            "hidden_dropout": cfg.act_dropout,
            "feature_dropout": cfg.feature_dropout,
        }
        self.layers = nn.ModuleList(
            MegaEncoderLayer(
                GatedMovingAverage(
                    dim,
                    cfg.encoder_hidden_dim,
                    cfg.z_dim,
                    cfg.n_dim,
                    attention=build_encoder_attention(cfg, self._context(cfg, layer)),
                    relative_bias=cfg.rel_pos_bias,
                    max_positions=cfg.max_positions,
                    chunk_size=cfg.chunk_size,
                    truncation=truncation if truncation and truncation > 0 else None,
                    ema=str(cfg.ema),
                    **shared,
                ),
                NormalizedFeedForward(dim, cfg.encoder_ffn_embed_dim, **shared)
                if cfg.encoder_ffn_embed_dim > 0
                else None,
            )
            for layer in range(cfg.encoder_layers)
        )
        self.final_norm = SequenceNorm(cfg.norm_type, dim) if cfg.encoder_normalize_before else None

    @classmethod
    def own_attention(cls, cfg: Any) -> str:
        """Return the name of MEGA's attention function."""
        return str(cfg.attention_activation_fn)

    @staticmethod
    def _context(cfg: Any, layer: int) -> AttentionContext:
        chunks = 0 < cfg.chunk_size < cfg.max_positions
        return gated_context(
            cfg,
            layer,
            max_positions=cfg.chunk_size if cfg.chunk_size > 0 else cfg.max_positions,
            grid=None if chunks else image_grid(cfg),
        )

    @property
    def packable(self) -> bool:
        """Whether only the moving average, the attention and the pooling know of rows."""
        return self.cfg.chunk_size <= 0 and not self.cfg.feature_dropout

    def forward(self, source: Tensor, lengths: SequenceLengths) -> Tensor:
        """Encode rows to one vector each.

        Args:
            source: (batch, positions), symbols (int64) or pixels (floating).
            lengths: valid positions of each row.

        Returns:
            (batch, dim), float32 or wider.
        """
        source, lengths = self._fill_chunk(source, lengths)
        x = self.embed_tokens(source).transpose(1, 2).contiguous()
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        x = dropout(x, self.cfg.dropout, self.training, self.cfg.feature_dropout)
        x = lengths.zero_padding(x)
        for layer in self.layers:
            x = layer(x, lengths)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return pool(x, lengths, self.cfg.sen_rep_type)

    def _fill_chunk(
        self, source: Tensor, lengths: SequenceLengths
    ) -> tuple[Tensor, SequenceLengths]:
        """Pad symbols to a multiple of the chunk size; an image is left as it is."""
        chunk, positions = self.cfg.chunk_size, source.size(1)
        if not 0 < chunk < positions or positions % chunk == 0 or source.is_floating_point():
            return source, lengths
        source = F.pad(source, (0, -positions % chunk), value=self.padding)
        return source, lengths.of_positions(source.size(1))
