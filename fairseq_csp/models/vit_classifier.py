"""The Vision Transformer as a fairseq model, and its architectures."""

from argparse import Namespace
from dataclasses import dataclass
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from fairseq.tasks import FairseqTask
from omegaconf import DictConfig

from fairseq_csp.models.tpu import take_back_tpu
from fairseq_csp.models.vit import ARCHITECTURES, POOLINGS, ViTConfig, ViTModel, _flag
from fairseq_csp.ops.csp import ORDERS, SHIFTS

# these the data tell, where no flag does
OF_DATA = ("image_size", "image_channels", "sentence_class_num")


@dataclass
class ViTClassifierConfig(ViTConfig, FairseqDataclass):
    """Flags of a Vision Transformer; an architecture gives those it names other defaults."""

    csp_shift: ChoiceEnum(SHIFTS) = _flag("linear", "how far CSP shifts each channel")
    csp_order: ChoiceEnum(ORDERS) = _flag("shift_sort", "which of CSP's two steps comes first")
    sen_rep_type: ChoiceEnum(POOLINGS) = _flag(
        "mp", "an image's vector: mean (mp), maximum (max), or class token (cls)"
    )
    image_size: Any = _flag(None, "pixels of an image, N or HEIGHTxWIDTH (default: the data's)")
    # the task's, which takes the model's value
    crop_size: Any = _flag(224, "pixels that images are brought to where they are files")
    image_channels: Optional[int] = _flag(  # noqa: UP045 (fairseq reads the annotations)
        None, "channels of an image (default: the data's)"
    )
    sentence_class_num: Optional[int] = _flag(  # noqa: UP045
        None, "number of classes (default: the data's)"
    )


@register_model("vit", dataclass=ViTClassifierConfig)
class ViTClassifier(ViTModel, BaseFairseqModel):
    """:class:`fairseq_csp.models.vit.ViTModel` with what fairseq expects of a model.

    Attributes:
        optimizer_is_restored: whether a checkpoint's optimizer state comes with its weights.
    """

    optimizer_is_restored = False

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
            cfg = ViTClassifierConfig.from_namespace(cfg)
        return cls(cfg)


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


for _name, _values in ARCHITECTURES.items():
    _register(_name, _values)
