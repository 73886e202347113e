"""The MEGA encoder (arXiv 2209.10655)."""

import torch.nn.functional as F
from fairseq.data import Dictionary
from torch import Tensor, nn

from fairseq_csp.models.config import LRAConfig, attention_name, attention_options
from fairseq_csp.modules.embeddings import NamedEmbedding, source_embedding
from fairseq_csp.modules.mega_layer import GatedMovingAverage, MegaEncoderLayer
from fairseq_csp.modules.norms import SequenceNorm
from fairseq_csp.modules.pointwise import NormalizedFeedForward, dropout
from fairseq_csp.modules.pooling import pool
from fairseq_csp.modules.rows import Rows


class MegaEncoder(nn.Module):
    """Embedding, MEGA layers and pooling.

    Args:
        cfg: the model's configuration.
        dictionary: symbols of the source; None for images.
    """

    def __init__(self, cfg: LRAConfig, dictionary: Dictionary | None) -> None:
        super().__init__()
        self.cfg = cfg
        dim = cfg.encoder_embed_dim
        self.embed_tokens = source_embedding(dictionary, dim)
        if dictionary is not None:
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
                    attention=attention_name(cfg),
                    options=attention_options(cfg, layer),
                    relative_bias=cfg.rel_pos_bias,
                    max_positions=cfg.max_positions,
                    chunk_size=cfg.chunk_size,
                    truncation=truncation if truncation and truncation > 0 else None,
                    **shared,
                ),
                NormalizedFeedForward(dim, cfg.encoder_ffn_embed_dim, **shared)
                if cfg.encoder_ffn_embed_dim > 0
                else None,
            )
            for layer in range(cfg.encoder_layers)
        )
        self.final_norm = SequenceNorm(cfg.norm_type, dim) if cfg.encoder_normalize_before else None

    def forward(self, source: Tensor, rows: Rows) -> Tensor:
        """Encode rows to one vector each.

        Args:
            source: (batch, positions), symbols (int64) or pixels (floating).
            rows: valid positions of each row.

        Returns:
            (batch, dim), float32 or wider.
        """
        source, rows = self._fill_chunk(source, rows)
        x = self.embed_tokens(source).transpose(1, 2).contiguous()
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        x = dropout(x, self.cfg.dropout, self.training, self.cfg.feature_dropout)
        x = rows.zero_padding(x)
        for layer in self.layers:
            x = layer(x, rows)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return pool(x, rows, self.cfg.sen_rep_type)

    def _fill_chunk(self, source: Tensor, rows: Rows) -> tuple[Tensor, Rows]:
        """Pad symbols to a multiple of the chunk size; an image is left as it is."""
        chunk, positions = self.cfg.chunk_size, source.size(1)
        if not 0 < chunk < positions or positions % chunk == 0 or source.is_floating_point():
            return source, rows
        source = F.pad(source, (0, -positions % chunk), value=self.padding)
        return source, Rows(rows.host, source.size(1), source.device)
