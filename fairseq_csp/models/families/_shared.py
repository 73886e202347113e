"""What the architectures of one task share, and the flags that MEGA and FLASH share."""

import math
from dataclasses import dataclass
from typing import Any

from fairseq.utils import get_available_activation_fns

from fairseq_csp.modules.attention import AttentionContext, option
from fairseq_csp.modules.norms import NORMS

LISTOP = {"max_positions": 2002, "sentence_class_num": 10}
IMDB = {"max_positions": 4002}
AAN = {"max_positions": 4002}
IMAGE = {"input_type": "image", "sen_rep_type": "mp"}
CIFAR10 = IMAGE | {"max_positions": 1024, "sentence_class_num": 10}
PF32 = IMAGE | {"max_positions": 1024}
PF128 = IMAGE | {"max_positions": 16384}


@dataclass
class GatedOptions:
    """Flags of the families whose layers have one gated attention."""

    encoder_hidden_dim: int = option(256, "value channels of MEGA and FLASH")
    z_dim: int = option(64, "query and key channels of MEGA and FLASH", needs="queries")
    attention_activation_fn: str = option(
        "relu2",
        "attention function of MEGA and FLASH; --attention overrides it",
        choices=("softmax", "relu2", "laplace"),
    )
    attention_dropout: float = option(
        0.1, "probability of dropping an attention weight", needs="dropout"
    )
    rel_pos_bias: str = option(
        "simple",
        "relative position bias of MEGA and FLASH",
        choices=("simple", "rotary"),
        needs="bias",
    )
    norm_type: str = option("layernorm", f"normalisation: {', '.join(NORMS)}")


@dataclass
class BlockOptions:
    """Flags of the families that choose their activation and where they normalise."""

    activation_fn: str = option(
        "gelu", "activation inside the layers", choices=(*get_available_activation_fns(), "silu")
    )
    encoder_normalize_before: bool = option(
        False, "MEGA normalises before each block, not after; the transformer its embedding"
    )


def image_grid(cfg: Any) -> tuple[int, int] | None:
    """Return rows and columns of the square images that a model classifies; None for text."""
    side = math.isqrt(cfg.max_positions)
    return (side, side) if str(cfg.input_type) == "image" else None


def gated_context(
    cfg: Any, layer: int, *, max_positions: int, grid: tuple[int, int] | None
) -> AttentionContext:
    """Return where the attention function of a layer of MEGA or FLASH stands.

    Args:
        cfg: the model's configuration.
        layer: index of the layer, from 0.
        max_positions: most positions of a row, or of a chunk.
        grid: of the image; None for text and for chunks of an image.
    """
    return AttentionContext(
        value_dim=cfg.encoder_hidden_dim,
        query_dim=cfg.z_dim,
        max_positions=max_positions,
        grid=grid,
        layer=layer,
        num_layers=cfg.encoder_layers,
        dropout=cfg.attention_dropout,
        has_bias=True,
    )
