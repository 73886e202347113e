"""Where in an image a patch of the output takes its values from, layer by layer."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from fairseq_csp.analysis.maps import attention_maps, example
from fairseq_csp.analysis.output import save
from fairseq_csp.analysis.trained import load
from fairseq_csp.errors import UserError
from fairseq_csp.models.vit import ViTModel
from fairseq_csp.plots import literal, load_pyplot


def over_image(model: ViTModel, sample: dict, patch: int) -> torch.Tensor:
    """Return the weights of all patches in one patch of each layer's output.

    Args:
        model: in evaluation mode.
        sample: a batch of one image.
        patch: which, in reading order, from 0.

    Returns:
        (layers, rows, columns), the mean over heads or channels; the class token is left out.

    Raises:
        UserError: there is no such patch, or the model has no attention maps.
    """
    rows, columns = model.grid
    if not 0 <= patch < rows * columns:
        raise UserError(f"--patch is {patch}, but the patches are 0 to {rows * columns - 1}")
    token = model.tokens - rows * columns
    found = [
        maps.weights.mean(0)[patch + token, token:].float()
        for maps in attention_maps(model, sample)
    ]
    return torch.stack(found).unflatten(1, (rows, columns))


def draw(
    file: Path,
    checkpoints: Sequence[Path],
    data: Path | None,
    split: str,
    number: int,
    patch: int | None,
) -> None:
    """Draw an image and, over it, the weights of each layer; a line of pictures a model.

    Args:
        file: name of the picture (PNG); the weights go beside it as CSV.
        checkpoints: of Vision Transformers.
        data: directory of the prepared data; where the models were trained from when None.
        split: name of the split that the image is taken from.
        number: which image, from 0.
        patch: whose weights, in reading order, from 0; the middle one when None.

    Raises:
        UserError: something asked for is not there, or a model is no Vision Transformer.
    """
    pyplot = load_pyplot()
    lines = []
    for checkpoint in checkpoints:
        model, task = load(checkpoint, data)
        if not isinstance(model, ViTModel):
            raise UserError(f"{checkpoint} holds no Vision Transformer: `maps` draws any model")
        _, sample = example(task, split, model.tokens, number)
        rows, columns = model.grid
        middle = rows // 2 * columns + columns // 2
        chosen = middle if patch is None else patch
        weights = over_image(model, sample, chosen)
        lines.append((checkpoint, _picture(sample, task), weights, divmod(chosen, columns)))
    layers = max(len(weights) for _, _, weights, _ in lines)
    figure, panels = pyplot.subplots(
        len(lines),
        layers + 1,
        figsize=(1.7 * (layers + 1), 2.1 * len(lines)),
        squeeze=False,
        layout="constrained",
    )
    records = []
    for (checkpoint, picture, weights, (row, column)), across in zip(lines, panels, strict=True):
        height, width = picture.shape[:2]
        side = height / weights.size(1), width / weights.size(2)
        name = literal(checkpoint.parent.name)
        across[0].set_ylabel(name, fontsize="x-small")
        for panel in across:
            panel.set(xticks=[], yticks=[])
        across[0].imshow(picture, cmap="grey")
        for layer, found in enumerate(weights):
            panel = across[layer + 1]
            panel.imshow(picture, cmap="grey", alpha=0.35)
            panel.imshow(found, cmap="magma", alpha=0.65, extent=(0, width, height, 0), vmin=0)
            panel.set_title(f"layer {layer}, max {found.max():.2g}", fontsize="xx-small")
            for at, weight in enumerate(found.flatten().tolist()):
                place = divmod(at, found.size(1))
                records.append([checkpoint.parent.name, layer, *place, f"{weight:.6g}"])
        for panel in across:
            panel.add_patch(
                pyplot.Rectangle(
                    (column * side[1], row * side[0]), side[1], side[0], fill=False, color="cyan"
                )
            )
    save(figure, ["model", "layer", "row", "column", "weight"], records, file)
    pyplot.close(figure)


def _picture(sample: dict, task: nn.Module) -> torch.Tensor:
    """Return the image before normalisation, (height, width, channels) in [0, 1]."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (task.mean, task.std))
    image = sample["net_input"]["images"][0] * std + mean
    return image.clamp(0, 1).permute(1, 2, 0)
