"""Checkpoints of the published Vision Transformer: ``{"args": dict, "state_dict": dict}``.

    python -m fairseq_csp.models.vit_published published.pt lra_data/cifar10-rgb checkpoint.pt

writes one as fairseq has them, for ``fairseq-validate --path`` and ``--finetune-from-model``.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_csp import checkpoints
from fairseq_csp.errors import UserError
from fairseq_csp.files import write_whole
from fairseq_csp.models.vit import ViTConfig, ViTModel

# the published words, but for those that stand for others here
WORDS = {
    "size": "image_size",
    "ps": "patch_size",
    "channels": "image_channels",
    "num_classes": "sentence_class_num",
    "n_layers": "encoder_layers",
    "dim": "encoder_embed_dim",
    "mlp_dim": "encoder_ffn_embed_dim",
    "n_heads": "encoder_attention_heads",
    "dim_head": "head_dim",
    "dropout": "dropout",
    "emb_dropout": "embedding_dropout",
}
POOLINGS = {"mean": "mp", "cls": "cls", "max": "max"}
ATTENTIONS = {"trans": "softmax", "swd": "csp"}


def options(words: dict[str, Any]) -> dict[str, Any]:
    """Return the options of :class:`ViTConfig` that published words stand for.

    Args:
        words: the ``args`` of a published checkpoint; others than the model's are left out.

    Raises:
        UserError: one is missing, or of a model that was not published.
    """
    missing = sorted({*WORDS, "pool", "attn"} - set(words))
    if missing:
        raise UserError(f"the published checkpoint's args lack {', '.join(missing)}")
    found = {name: words[word] for word, name in WORDS.items()}
    for word, name, known in (
        ("pool", "sen_rep_type", POOLINGS),
        ("attn", "attention", ATTENTIONS),
    ):
        if words[word] not in known:
            raise UserError(
                f"the published checkpoint's {word} is {words[word]!r}; known are "
                f"{', '.join(known)}"
            )
        found[name] = known[words[word]]
    return found


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a published checkpoint, weights only.

    Args:
        path: where.

    Returns:
        The options of :class:`ViTConfig`, and the state dict.

    Raises:
        UserError: it is not there, damaged, or something else.
    """
    try:
        content: Any = checkpoints.read(path)
        words, state = content["args"], content["state_dict"]
        if not isinstance(words, dict) or not isinstance(state, dict):
            raise TypeError("args and state_dict are no dictionaries")
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(
            f"{path} is no published checkpoint of a Vision Transformer, a dictionary of args and "
            f"state_dict with plain values ({type(error).__name__})"
        ) from error
    return options(words), state


def load(path: str | Path, **others: Any) -> ViTModel:
    """Return the model of a published checkpoint.

    Args:
        path: where.
        **others: options that win over the checkpoint's, such as ``attention="csp"``.

    Raises:
        UserError: it is no such checkpoint, or its weights do not fit.
    """
    found, state = read(path)
    model = ViTModel(ViTConfig(**(found | others)))
    model.load_state_dict(state)
    return model


def convert(path: str | Path, data: str) -> dict[str, Any]:
    """Return a published checkpoint in fairseq's form.

    Args:
        path: where.
        data: directory of the prepared data.

    Raises:
        UserError: it is no such checkpoint.
    """
    from fairseq import options as fairseq_options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from omegaconf import OmegaConf

    import fairseq_csp.plugin  # noqa: F401 (registers task and model)

    found, state = read(path)
    flags = ["--task", "image-classification", "--arch", "vit_cifar10"]
    flags += ["--criterion", "image_cross_entropy", "--optimizer", "adam", "--batch-size", "1"]
    for name, value in found.items():
        size = "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        flags += ["--" + name.replace("_", "-"), size]
    args = fairseq_options.parse_args_and_arch(
        fairseq_options.get_training_parser(), [str(data), *flags]
    )
    cfg = convert_namespace_to_omegaconf(args)
    history = {
        "criterion_name": "ImageCrossEntropyCriterion",
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {},
        "num_updates": 0,
    }
    return {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": state,
        "criterion": None,
        "optimizer_history": [history],
        "task_state": {},
        "extra_state": {
            "train_iterator": {"epoch": 1, "iterations_in_epoch": 0, "shuffle": True},
            "val_loss": None,
        },
        "last_optimizer_state": None,
    }


def main() -> None:
    """Convert a checkpoint."""
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_csp.models.vit_published",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("published", help="the published checkpoint")
    parser.add_argument("data", help="directory of the prepared data")
    parser.add_argument("out", help="the checkpoint to write")
    arguments = parser.parse_args()
    content = io.BytesIO()
    torch.save(convert(arguments.published, arguments.data), content)
    write_whole(arguments.out, content.getbuffer())
    sys.stdout.write(f"wrote {arguments.out}\n")


if __name__ == "__main__":
    main()
