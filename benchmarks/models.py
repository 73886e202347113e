"""Models and batches to be measured."""

from collections.abc import Callable

import torch
from fairseq.data import Dictionary
from torch import Tensor

import fairseq_csp.plugin  # noqa: F401 (registers the architectures)
from fairseq_csp.criterions.lra_cross_entropy import LRACrossEntropyCriterion
from fairseq_csp.models import vit
from fairseq_csp.models.config import architecture_config
from fairseq_csp.models.lra import LRAModel
from fairseq_csp.models.vit import ViTModel
from fairseq_csp.parameters import SYMBOLS


def build_model(arch: str, length: int, **options: object) -> LRAModel | ViTModel:
    """Build a model of a named architecture in training mode.

    Args:
        arch: name of the architecture.
        length: positions of a row; ``max_positions`` is raised to it. The tokens of an image follow
            from the architecture.
        **options: flags of the model.
    """
    if arch in vit.ARCHITECTURES:
        torch.manual_seed(0)
        return ViTModel(vit.ViTConfig(**(vit.ARCHITECTURES[arch] | options))).train()
    cfg = architecture_config(arch, **options)
    cfg.max_positions = max(cfg.max_positions, length)
    dictionary = None
    if cfg.input_type == "text":
        dictionary = Dictionary()
        for number in range(SYMBOLS["imdb"] - dictionary.nspecial):
            dictionary.add_symbol(f"symbol{number}")
    torch.manual_seed(0)
    return LRAModel(cfg, dictionary).train()


def random_sample(model: LRAModel | ViTModel, batch: int, length: int) -> dict[str, object]:
    """Return a random batch without padding, as the criterion takes it.

    Args:
        model: what it is for; text or images.
        batch: number of rows.
        length: positions of a row.
    """
    weight = next(model.parameters())
    device = weight.device
    if isinstance(model, ViTModel):
        shape = (batch, model.cfg.image_channels, *model.image_size)
        net_input = {"images": torch.randn(shape).to(weight)}
    else:
        net_input = {
            "src_tokens": _random_source(model, (batch, length)).to(device),
            "src_lengths": torch.full((batch,), length).to(device),
        }
    return {
        "net_input": net_input,
        "target": torch.randint(model.cfg.sentence_class_num, (batch,)).to(device),
        "ntokens": batch * length,
    }


def training_step(
    model: LRAModel | ViTModel,
    sample: dict[str, object],
    function: Callable[..., Tensor] | None = None,
) -> Callable[[], None]:
    """Return a call that makes one forward and backward pass of the criterion's loss.

    Args:
        model: whose parameters take the gradients, anew in each call.
        sample: a batch.
        function: computes the model's logits in its stead.
    """
    criterion = LRACrossEntropyCriterion(None)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        criterion(function or model, sample)[0].backward()

    return step


def _random_source(model: LRAModel, shape: tuple[int, int]) -> Tensor:
    if model.cfg.input_type == "image":
        return torch.randn(shape)
    # the first symbols are special
    return torch.randint(4, SYMBOLS["imdb"], shape)
