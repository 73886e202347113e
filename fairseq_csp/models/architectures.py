"""The named variants: one row of values an architecture, registered with fairseq."""

from argparse import Namespace

from fairseq.models import register_model_architecture
from omegaconf import DictConfig

import fairseq_csp.models.lra  # noqa: F401 (registers the model that these are variants of)

LISTOP = {"max_positions": 2002, "sentence_class_num": 10}
IMDB = {"max_positions": 4002}
AAN = {"max_positions": 4002}
CIFAR10 = {"input_type": "image", "max_positions": 1024, "sentence_class_num": 10}
PF32 = {"input_type": "image", "max_positions": 1024}
PF128 = {"input_type": "image", "max_positions": 16384}

MEGA = {"layer_type": "mega", "activation_fn": "silu", "n_dim": 16, "sen_rep_type": "mp"}


def _mega(dim: int, hidden: int, z: int, layers: int, out: int) -> dict[str, object]:
    return MEGA | {
        "encoder_embed_dim": dim,
        "encoder_hidden_dim": hidden,
        "encoder_ffn_embed_dim": hidden,
        "z_dim": z,
        "encoder_layers": layers,
        "classifier_out_dim": out,
    }


ARCHITECTURES: dict[str, dict[str, object]] = {
    "mega_lra_listop": LISTOP | _mega(80, 160, 64, 6, 160),
    "mega_lra_imdb": IMDB | _mega(128, 256, 64, 4, 256) | {"norm_type": "scalenorm"},
}


def _register(name: str, values: dict[str, object]) -> None:
    def architecture(args: Namespace | DictConfig) -> None:
        for key, value in values.items():
            if not hasattr(args, key):
                setattr(args, key, value)

    register_model_architecture("lra", name)(architecture)


for _name, _values in ARCHITECTURES.items():
    _register(_name, _values)
