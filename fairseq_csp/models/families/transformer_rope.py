"""A Transformer with rotary positions, as one would build it today: a strong softmax baseline.

Layer norms in front of the blocks (arXiv 2002.04745), queries and keys rotated by their positions
(arXiv 2104.09864), a layer norm at the end. arXiv 2310.02980 shows that Transformers reach more on
the Long Range Arena than its published rows say.
"""

from dataclasses import dataclass
from typing import Any

from fairseq.data import Dictionary
from fairseq.modules import LayerNorm
from fairseq.utils import get_available_activation_fns
from torch import Tensor, nn

from fairseq_csp.models.families._shared import AAN, CIFAR10, IMDB, LISTOP, PF32, PF128
from fairseq_csp.models.families.transformer import build_layer_attention
from fairseq_csp.models.family import Encoder, register_family
from fairseq_csp.modules.attention import (
    HeadAttention,
    QueryKeyAttention,
    ValueAttention,
    option,
)
from fairseq_csp.modules.embeddings import source_embedding
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.pooling import pool
from fairseq_csp.modules.transformer_layer import TransformerEncoderLayer, start_stream
from fairseq_csp.ops.dropout import dropout


@dataclass
class RotaryTransformerOptions:
    """Flags of the rotary Transformer."""

    encoder_attention_heads: int = option(4, "heads of the transformer", needs="heads")
    attention_dropout: float = option(
        0.1, "probability of dropping an attention weight", needs="dropout"
    )
    activation_fn: str = option(
        "gelu", "activation inside the layers", choices=(*get_available_activation_fns(), "silu")
    )


def _sizes(dim: int, ffn: int, layers: int, heads: int) -> dict[str, object]:
    return {
        "sen_rep_type": "mp",
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": ffn,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "classifier_out_dim": 2 * dim,
    }


@register_family(
    "transformer_rope",
    options=RotaryTransformerOptions,
    # this project's; about as many parameters as the task's MEGA (within 15 %)
    architectures={
        "transformer_rope_lra_listop": LISTOP | _sizes(128, 256, 4, 4),
        "transformer_rope_lra_imdb": IMDB | _sizes(128, 640, 4, 4),
        "transformer_rope_lra_aan": AAN | _sizes(128, 640, 6, 4),
        "transformer_rope_lra_cifar10": CIFAR10 | _sizes(192, 768, 6, 6),
        "transformer_rope_lra_pf32": PF32 | _sizes(128, 640, 6, 4),
        "transformer_rope_lra_pf128": PF128 | _sizes(64, 256, 7, 4),
    },
)
class RotaryTransformerEncoder(Encoder):
    """Embedding, Transformer layers with rotated queries and keys, a final norm and pooling.

    Args:
        cfg: the model's configuration.
        dictionary: symbols of the source; None for images.

    Raises:
        UserError: the heads do not divide the channels into even parts.
    """

    takes = (ValueAttention, QueryKeyAttention, HeadAttention)
    positions_first = True

    def __init__(self, cfg: Any, dictionary: Dictionary | None) -> None:
        super().__init__()
        self.cfg = cfg
        dim = cfg.encoder_embed_dim
        self.embed_tokens = source_embedding(dictionary, dim)
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(
                build_layer_attention(cfg, layer, rotary=True),
                dim,
                cfg.encoder_ffn_embed_dim,
                activation_fn=cfg.activation_fn,
                dropout=cfg.dropout,
                hidden_dropout=cfg.act_dropout,
                prenorm=True,
            )
            for layer in range(cfg.encoder_layers)
        )
        self.final_norm = LayerNorm(dim)

    @classmethod
    def own_attention(cls, cfg: Any) -> str:
        """Return the name of the Transformer's attention function."""
        return "softmax"

    @property
    def packable(self) -> bool:
        """Whether only the attention and the pooling know of rows: it rotates what it has."""
        return self.attention_packs()

    def forward(self, source: Tensor, lengths: SequenceLengths) -> Tensor:
        """Encode each row to a vector.

        Args:
            source: (batch, positions), symbols (int64) or pixels (floating).
            lengths: valid positions of each row.

        Returns:
            (batch, dim), float32 or wider.
        """
        x = dropout(self.embed_tokens(source), self.cfg.dropout, self.training).transpose(0, 1)
        stream = start_stream(self.layers, source.size(0))
        for layer in self.layers:
            x = layer(x, lengths, stream=stream)
        return pool(self.final_norm(x).permute(1, 2, 0), lengths, self.cfg.sen_rep_type)
