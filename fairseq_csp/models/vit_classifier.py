"""The Vision Transformer as a fairseq model, and its architectures."""

import dataclasses
from argparse import Namespace
from dataclasses import dataclass
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from fairseq.tasks import FairseqTask
from omegaconf import DictConfig

from fairseq_csp.models.config import attention_flags, plain_config, renew_flags
from fairseq_csp.models.hub import FromPretrained
from fairseq_csp.models.tpu import take_back_tpu
from fairseq_csp.models.vit import (
    ARCHITECTURES,
    OTHER_DEFAULTS,
    POOLINGS,
    SharedConfig,
    ViTModel,
    flag,
)
from fairseq_csp.modules import attention as attention_functions

# these the data tell, where no flag does
OF_DATA = ("image_size", "image_channels", "sentence_class_num")


@dataclass
class ViTClassifierConfig(SharedConfig, FairseqDataclass):
    """Flags of a Vision Transformer; an architecture gives those it names other defaults."""

    sen_rep_type: ChoiceEnum(POOLINGS) = flag(  # type: ignore[valid-type]
        "mp", "an image's vector: mean (mp), maximum (max), or class token (cls)"
    )
    image_size: Any = flag(None, "pixels of an image, N or HEIGHTxWIDTH (default: the data's)")
    # the task's, which takes the model's value
    crop_size: Any = flag(224, "pixels that images are brought to where they are files")
    # Optional, since fairseq reads the annotations
    image_channels: Optional[int] = flag(  # type: ignore[assignment]  # noqa: UP045
        None, "channels of an image (default: the data's)"
    )
    sentence_class_num: Optional[int] = flag(  # type: ignore[assignment]  # noqa: UP045
        None, "number of classes (default: the data's)"
    )


def _config_class() -> type[ViTClassifierConfig]:
    """Return the configuration with the flags of the attention functions registered by now."""
    flags = attention_flags()
    for name, value in OTHER_DEFAULTS.items():
        kind, item = flags[name]
        renewed: Any = dataclasses.field(default=value, metadata=item.metadata)
        flags[name] = (kind, renewed)
    return dataclasses.make_dataclass(
        "ViTFlags",
        [(name, *flag) for name, flag in flags.items()],
        bases=(ViTClassifierConfig,),
        namespace={"__module__": __name__},
    )


@register_model("vit", dataclass=_config_class())
class ViTClassifier(FromPretrained, ViTModel, BaseFairseqModel):
    """:class:`fairseq_csp.models.vit.ViTModel` with what fairseq expects of a model."""

    @classmethod
    def build_model(
        cls, cfg: ViTClassifierConfig | Namespace, task: FairseqTask
    ) -> "ViTClassifier":
        """Build the model for a task of this package.

        Raises:
            UserError: flags that do not go together.
        """
        if isinstance(cfg, Namespace):
            # from a caller of fairseq's API that has flags and no configuration
            cfg = _config_class().from_namespace(cfg)
        return cls(plain_config(cfg, _config_class()))


def _register(name: str, values: dict[str, int]) -> None:
    def architecture(args: Namespace | DictConfig) -> None:
        for key, value in values.items():
            if key == "image_size":
                # of files; the size of pixels that are in the data is what it is
                key = "crop_size"
            if key not in OF_DATA and not hasattr(args, key):
                setattr(args, key, value)
        take_back_tpu(args)

    register_model_architecture("vit", name)(architecture)


def _renew_flags(name: str) -> None:
    """Tell fairseq of the flags of an attention function that was registered since."""
    renew_flags(ViTClassifier, "vit", _config_class())


for _name, _values in ARCHITECTURES.items():
    _register(_name, _values)
attention_functions.after_registration.append(_renew_flags)
