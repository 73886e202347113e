"""The FLASH encoder: gated attention units (arXiv 2202.10447)."""

from fairseq.data import Dictionary
from torch import Tensor, nn

from fairseq_csp.models.config import LRAConfig, attention_name, attention_options
from fairseq_csp.modules.embeddings import source_embedding
from fairseq_csp.modules.gated_attention_unit import (
    FlashEncoderLayer,
    GatedAttentionUnit,
    flash_norm,
)
from fairseq_csp.modules.pooling import pool
from fairseq_csp.modules.rows import Rows
from fairseq_csp.ops.dropout import dropout


class FlashEncoder(nn.Module):
    """Embedding, gated attention units, a closing norm and pooling.

    Args:
        cfg: the model's configuration.
        dictionary: symbols of the source; None for images.
    """

    def __init__(self, cfg: LRAConfig, dictionary: Dictionary | None) -> None:
        super().__init__()
        self.cfg = cfg
        dim = cfg.encoder_embed_dim
        self.embed_tokens = source_embedding(dictionary, dim)
        self.layers = nn.ModuleList(
            FlashEncoderLayer(
                GatedAttentionUnit(
                    dim,
                    cfg.encoder_hidden_dim,
                    cfg.z_dim,
                    attention=attention_name(cfg),
                    options=attention_options(cfg, layer),
                    hidden_dropout=cfg.act_dropout,
                    relative_bias=cfg.rel_pos_bias,
                    max_positions=cfg.max_positions,
                ),
                cfg.norm_type,
                dim,
                cfg.dropout,
            )
            for layer in range(cfg.encoder_layers)
        )
        self.final_norm = flash_norm(cfg.norm_type, dim)

    def forward(self, source: Tensor, rows: Rows) -> Tensor:
        """Encode rows to one vector each.

        Args:
            source: (batch, positions), symbols (int64) or pixels (floating).
            rows: valid positions of each row.

        Returns:
            (batch, dim), float32 or wider.
        """
        x = self.embed_tokens(source).transpose(1, 2).contiguous()
        x = rows.zero_padding(dropout(x, self.cfg.dropout, self.training))
        for layer in self.layers:
            x = layer(x, rows)
        return pool(self.final_norm(x), rows, self.cfg.sen_rep_type)
