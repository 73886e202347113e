"""The named variants: one row of values an architecture, registered with fairseq."""

from argparse import Namespace
from importlib.util import find_spec

from fairseq.models import register_model_architecture
from omegaconf import DictConfig

import fairseq_csp.models.lra  # noqa: F401 (registers the model that these are variants of)

LISTOP = {"max_positions": 2002, "sentence_class_num": 10}
IMDB = {"max_positions": 4002}
AAN = {"max_positions": 4002}
IMAGE = {"input_type": "image", "sen_rep_type": "mp"}
CIFAR10 = IMAGE | {"max_positions": 1024, "sentence_class_num": 10}
PF32 = IMAGE | {"max_positions": 1024}
PF128 = IMAGE | {"max_positions": 16384}


def _mega(dim: int, hidden: int, z: int, layers: int, **others: object) -> dict[str, object]:
    return {
        "layer_type": "mega",
        "activation_fn": "silu",
        "sen_rep_type": "mp",
        "encoder_embed_dim": dim,
        "encoder_hidden_dim": hidden,
        "z_dim": z,
        "encoder_layers": layers,
        "classifier_out_dim": hidden,
        **others,
    }


def _transformer(dim: int, ffn: int, layers: int, heads: int, out: int = 0) -> dict[str, object]:
    return {
        "layer_type": "transformer",
        "encoder_normalize_before": True,
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": ffn,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "classifier_out_dim": out or ffn,
    }


def _flash(dim: int, hidden: int, z: int, layers: int, norm: str) -> dict[str, object]:
    return {
        "layer_type": "flash",
        "encoder_embed_dim": dim,
        "encoder_hidden_dim": hidden,
        "z_dim": z,
        "encoder_layers": layers,
        "norm_type": norm,
        "classifier_out_dim": hidden,
    }


def _lstm(dim: int, layers: int) -> dict[str, object]:
    return {
        "layer_type": "lstm",
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": dim,
        "encoder_layers": layers,
        "classifier_out_dim": dim,
    }


# Where nothing was published, the sizes are such that the model has about as many parameters as the
# task's MEGA with its own attention, so that a comparison is one of architectures (within 15 %).
ARCHITECTURES: dict[str, dict[str, object]] = {
    "mega_lra_listop": LISTOP | _mega(80, 160, 64, 6),
    "mega_lra_imdb": IMDB | _mega(128, 256, 64, 4, norm_type="scalenorm"),
    "mega_lra_aan": AAN | _mega(128, 256, 64, 6),
    "mega_lra_cifar10": CIFAR10 | _mega(160, 320, 96, 8, norm_type="batchnorm", chunk_size=1024),
    "mega_lra_pf32": PF32 | _mega(128, 256, 64, 6, norm_type="batchnorm", chunk_size=1024),
    "mega_lra_pf128": PF128
    | _mega(64, 128, 32, 4, norm_type="batchnorm", chunk_size=16384, truncation_length=4096),
    "transformer_lra_listop": LISTOP
    | _transformer(512, 2048, 6, 8)
    | {"tie_layer_weights": True, "apply_bert_init": True},
    "transformer_lra_imdb": IMDB | _transformer(256, 1024, 4, 4) | {"apply_bert_init": True},
    "transformer_lra_aan": AAN | _transformer(128, 512, 4, 4),
    "transformer_lra_cifar10": CIFAR10 | _transformer(64, 128, 1, 8),
    "transformer_lra_pf32": PF32 | _transformer(128, 128, 1, 4, out=256) | {"max_positions": 1026},
    # not published
    "transformer_lra_pf128": PF128 | _transformer(128, 384, 2, 4, out=256),
    "flash_lra_imdb": IMDB | _flash(128, 256, 64, 4, "scalenorm"),
    "flash_lra_cifar10": CIFAR10 | _flash(192, 512, 128, 8, "batchnorm"),
    "flash_lra_pf32": PF32 | _flash(128, 384, 64, 6, "batchnorm"),
    # not published
    "flash_lra_listop": LISTOP | _flash(80, 320, 64, 6, "layernorm"),
    "flash_lra_aan": AAN | _flash(128, 512, 64, 6, "scalenorm"),
    "flash_lra_pf128": PF128 | _flash(64, 256, 32, 4, "batchnorm"),
    # not published
    "lstm_lra_listop": LISTOP | _lstm(120, 2),
    "lstm_lra_imdb": IMDB | _lstm(152, 2),
    "lstm_lra_aan": AAN | _lstm(184, 2),
    "lstm_lra_cifar10": CIFAR10 | _lstm(256, 2),
    "lstm_lra_pf32": PF32 | _lstm(184, 2),
    "lstm_lra_pf128": PF128 | _lstm(96, 2),
}


def take_back_tpu(args: Namespace | DictConfig) -> None:
    """Undo that fairseq takes ``--bf16`` to mean a TPU, where there is no library for one."""
    if isinstance(args, Namespace) and find_spec("torch_xla") is None:
        args.tpu = False


def _register(name: str, values: dict[str, object]) -> None:
    def architecture(args: Namespace | DictConfig) -> None:
        for key, value in values.items():
            if not hasattr(args, key):
                setattr(args, key, value)
        if not hasattr(args, "encoder_ffn_embed_dim"):
            args.encoder_ffn_embed_dim = args.encoder_hidden_dim
        take_back_tpu(args)

    register_model_architecture("lra", name)(architecture)


for _name, _values in ARCHITECTURES.items():
    _register(_name, _values)
