"""Rank collapse in trained models: how alike the vectors of positions become, layer by layer."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fairseq_csp.analysis.collapse import residual_norm, stable_rank
from fairseq_csp.analysis.output import save
from fairseq_csp.analysis.trained import load
from fairseq_csp.errors import UserError
from fairseq_csp.plots import literal, load_pyplot


@torch.no_grad()
def layer_by_layer(model: nn.Module, samples: Sequence[dict]) -> list[tuple[float, float]]:
    """Measure the positions of all samples together.

    Args:
        model: an LRA model in evaluation mode.
        samples: batches of one example each. Of a pair of documents the first one counts.

    Returns:
        Residual norm and stable rank of what the first layer gets, then of each layer's output.

    Raises:
        UserError: the model has no stack of layers to look into.
    """
    encoder = getattr(getattr(model, "encoder", None), "encoder", None)
    layers = getattr(encoder, "layers", None)
    if not layers:
        raise UserError(
            f"the model is of {type(encoder or model).__name__}, which has no layers of positions "
            "to look into: name a checkpoint of a model with attention"
        )
    seen: list[Tensor] = []

    def before(module: nn.Module, inputs: tuple) -> None:
        # a shared layer is called several times
        if not seen:
            seen.append(inputs[0])

    hooks = [layers[0].register_forward_pre_hook(before)]
    hooks += [
        layer.register_forward_hook(lambda module, x, out: seen.append(out)) for layer in layers
    ]
    by_layer = []
    for sample in samples:
        seen.clear()
        model(**sample["net_input"])
        # (positions, channels) of a batch of one
        by_layer.append(
            [
                x[:, 0] if encoder.positions_first else x[0].T
                for x in seen[: model.cfg.encoder_layers + 1]
            ]
        )
    for hook in hooks:
        hook.remove()
    pooled = (torch.cat(parts).double() for parts in zip(*by_layer, strict=True))
    return [(residual_norm(x), stable_rank(x)) for x in pooled]


def draw(
    file: Path, checkpoints: Sequence[Path], data: Path | None, split: str, examples: int
) -> None:
    """Draw residual norm and stable rank against depth, a line a checkpoint.

    Args:
        file: name of the picture (PNG); the numbers go beside it as CSV.
        checkpoints: of one or several models.
        data: directory of the prepared data; where the models were trained from when None.
        split: name of the split.
        examples: how many examples of it, at least 1, spread over it.

    Raises:
        UserError: something asked for is not there, or matplotlib is not, or the picture cannot be
            written.
    """
    pyplot = load_pyplot()
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    records = []
    for checkpoint in checkpoints:
        model, task = load(checkpoint, data)
        task.load_dataset(split)
        dataset = task.dataset(split)
        spread = (number * len(dataset) // examples for number in range(examples))
        samples = [dataset.collater([dataset[number]]) for number in spread]
        measured = layer_by_layer(model, samples)
        for panel, values in zip(panels, zip(*measured, strict=True), strict=True):
            panel.plot(values, marker="o", label=literal(checkpoint))
        for layer, (norm, rank) in enumerate(measured):
            records.append([checkpoint, layer, f"{norm:.6g}", f"{rank:.6g}"])
    for panel, name in zip(panels, ("residual norm", "stable rank"), strict=True):
        panel.set(xlabel="layers", ylabel=name)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize="small")
    save(figure, ["checkpoint", "layers", "residual_norm", "stable_rank"], records, file)
    pyplot.close(figure)
