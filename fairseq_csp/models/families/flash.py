"""The FLASH encoder: gated attention units (arXiv 2202.10447)."""

from typing import Any

from fairseq.data import Dictionary
from torch import Tensor, nn

from fairseq_csp.models.families._shared import (
    AAN,
    CIFAR10,
    IMDB,
    LISTOP,
    PF32,
    PF128,
    GatedOptions,
    gated_context,
    image_grid,
)
from fairseq_csp.models.family import Encoder, build_encoder_attention, register_family
from fairseq_csp.modules.attention import QueryKeyAttention, ValueAttention
from fairseq_csp.modules.embeddings import source_embedding
from fairseq_csp.modules.gated_attention_unit import (
    FlashEncoderLayer,
    GatedAttentionUnit,
    flash_norm,
)
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.pooling import pool
from fairseq_csp.ops.dropout import dropout


def _sizes(dim: int, hidden: int, z: int, layers: int, norm: str) -> dict[str, object]:
    return {
        "encoder_embed_dim": dim,
        "encoder_hidden_dim": hidden,
        "z_dim": z,
        "encoder_layers": layers,
        "norm_type": norm,
        "classifier_out_dim": hidden,
    }


@register_family(
    "flash",
    options=GatedOptions,
    architectures={
        "flash_lra_imdb": IMDB | _sizes(128, 256, 64, 4, "scalenorm"),
        "flash_lra_cifar10": CIFAR10 | _sizes(192, 512, 128, 8, "batchnorm"),
        "flash_lra_pf32": PF32 | _sizes(128, 384, 64, 6, "batchnorm"),
        # not published; about as many parameters as the task's MEGA (within 15 %)
        "flash_lra_listop": LISTOP | _sizes(80, 320, 64, 6, "layernorm"),
        "flash_lra_aan": AAN | _sizes(128, 512, 64, 6, "scalenorm"),
        "flash_lra_pf128": PF128 | _sizes(64, 256, 32, 4, "batchnorm"),
    },
)
class FlashEncoder(Encoder):
    """Embedding, gated attention units, a closing norm and pooling.

    Args:
        cfg: the model's configuration.
        dictionary: symbols of the source; None for images.
    """

    takes = (ValueAttention, QueryKeyAttention)
    # only the attention and the pooling know of rows
    packable = True

    def __init__(self, cfg: Any, dictionary: Dictionary | None) -> None:
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
                    attention=build_encoder_attention(
                        cfg,
                        gated_context(
                            cfg, layer, max_positions=cfg.max_positions, grid=image_grid(cfg)
                        ),
                    ),
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

    @classmethod
    def own_attention(cls, cfg: Any) -> str:
        """Return the name of FLASH's attention function."""
        return str(cfg.attention_activation_fn)

    def forward(self, source: Tensor, lengths: SequenceLengths) -> Tensor:
        """Encode rows to one vector each.

        Args:
            source: (batch, positions), symbols (int64) or pixels (floating).
            lengths: valid positions of each row.

        Returns:
            (batch, dim), float32 or wider.
        """
        x = self.embed_tokens(source).transpose(1, 2).contiguous()
        x = lengths.zero_padding(dropout(x, self.cfg.dropout, self.training))
        for layer in self.layers:
            x = layer(x, lengths)
        return pool(self.final_norm(x), lengths, self.cfg.sen_rep_type)
