"""The flags of all LRA models, and what follows from them."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.utils import get_available_activation_fns

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import AttentionOptions
from fairseq_csp.ops.csp import FULL, ORDERS, SHIFTS

FAMILIES = ChoiceEnum(["mega", "transformer", "flash", "lstm"])
INPUTS = ChoiceEnum(["text", "image"])
POOLINGS = ChoiceEnum(["mp", "cls"])
BIASES = ChoiceEnum(["simple", "rotary"])
ACTIVATIONS = ChoiceEnum([*get_available_activation_fns(), "silu"])
SCORE_FUNCTIONS = ChoiceEnum(["softmax", "relu2", "laplace"])


def _flag(default: object, text: str) -> object:
    return field(default=default, metadata={"help": text})


@dataclass
class LRAConfig(FairseqDataclass):
    """Flags of an LRA model; an architecture gives those it names other defaults."""

    layer_type: FAMILIES = _flag("mega", "family of encoder layers")
    input_type: INPUTS = _flag("text", "symbols or real-valued pixels")
    attention: Optional[str] = _flag(  # noqa: UP045 (fairseq reads the annotation)
        None, "what mixes the positions, by its registered name (default: the architecture's own)"
    )
    csp_shift: ChoiceEnum(SHIFTS) = _flag("exponential", "how far CSP shifts each channel")
    csp_group_size: str = _flag("2", "positions CSP sorts together: a number, or full")
    csp_order: ChoiceEnum(ORDERS) = _flag("shift_sort", "which of CSP's two steps comes first")
    csp_descending: bool = _flag(False, "CSP sorts from the largest to the smallest")
    attention_activation_fn: SCORE_FUNCTIONS = _flag(
        "relu2", "attention function of MEGA and FLASH; --attention overrides it"
    )
    encoder_layers: int = _flag(6, "number of layers")
    encoder_embed_dim: int = _flag(128, "model channels")
    encoder_hidden_dim: int = _flag(256, "value channels of MEGA and FLASH")
    encoder_ffn_embed_dim: int = _flag(256, "channels inside a feed-forward block")
    encoder_attention_heads: int = _flag(4, "heads of the transformer")
    z_dim: int = _flag(64, "query and key channels of MEGA and FLASH")
    n_dim: int = _flag(16, "components of MEGA's moving average")
    chunk_size: int = _flag(-1, "MEGA's attention stays in chunks of this size (-1: whole row)")
    truncation_length: Optional[int] = _flag(  # noqa: UP045
        1024, "MEGA's moving average reaches this far (0 or less: all the way)"
    )
    max_positions: int = _flag(4002, "most positions of a row")
    norm_type: str = _flag("layernorm", "layernorm, scalenorm, rmsnorm, batchnorm or syncbatchnorm")
    encoder_normalize_before: bool = _flag(
        False, "MEGA normalises before each block, not after; the transformer its embedding"
    )
    normalize_embedding: bool = _flag(False, "MEGA normalises its embedding")
    rel_pos_bias: BIASES = _flag("simple", "relative position bias of MEGA and FLASH")
    activation_fn: ACTIVATIONS = _flag("gelu", "activation inside the layers")
    dropout: float = _flag(0.1, "probability of dropping a model channel")
    attention_dropout: float = _flag(0.1, "probability of dropping an attention weight")
    act_dropout: float = _flag(0.0, "probability of dropping a hidden number or a value")
    feature_dropout: bool = _flag(False, "MEGA drops whole channels of a row")
    encoder_learned_pos: bool = _flag(False, "learn the transformer's positions, not sinusoids")
    tie_layer_weights: bool = _flag(False, "all layers of the transformer share their weights")
    apply_bert_init: bool = _flag(False, "initialise linear maps and symbols as BERT does")
    sen_rep_type: POOLINGS = _flag("cls", "a row's vector: mean over positions, or first position")
    classifier_layers: int = _flag(1, "hidden layers of the classifier")
    classifier_in_dim: Optional[int] = _flag(  # noqa: UP045
        None, "channels into the classifier (default: what the encoder gives)"
    )
    classifier_out_dim: int = _flag(256, "channels of the classifier's hidden layers")
    classifier_activation_fn: ACTIVATIONS = _flag("gelu", "activation of the classifier")
    sentence_class_num: int = _flag(2, "number of classes")
    keep_padding: bool = _flag(
        False, "encode a padded batch as it is, not in parts trimmed to their own lengths"
    )


def attention_name(cfg: LRAConfig) -> str:
    """Return the attention function of a MEGA or FLASH model."""
    return cfg.attention or str(cfg.attention_activation_fn)


def attention_options(cfg: LRAConfig, layer: int) -> AttentionOptions:
    """Return what the attention function of one layer is built with.

    Args:
        cfg: the model's configuration.
        layer: index of the layer, from 0.

    Raises:
        UserError: ``--csp-group-size`` is neither a positive number nor ``full``.
    """
    group = str(cfg.csp_group_size)
    if group != FULL and not (group.isdecimal() and int(group) > 0):
        raise UserError(
            f"--csp-group-size is {group!r}; it must be a number of at least 1, or {FULL}"
        )
    return AttentionOptions(
        layer=layer,
        num_layers=cfg.encoder_layers,
        dropout=cfg.attention_dropout,
        csp_shift=str(cfg.csp_shift),
        csp_group_size=group if group == FULL else int(group),
        csp_order=str(cfg.csp_order),
        csp_descending=cfg.csp_descending,
    )
