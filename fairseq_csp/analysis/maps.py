"""The attention maps of a trained model on one input.

CSP's are those that it implies: one permutation matrix a channel, which depends on the input
through the sorting.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fairseq_csp.analysis.output import save
from fairseq_csp.analysis.trained import load
from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import AttentionFunction, AttentionMaps
from fairseq_csp.plots import literal, load_pyplot


def example(task: object, split: str, longest: int, number: int | None) -> tuple[int, dict]:
    """Return an example of a split as a batch of one.

    Args:
        task: a task of this package.
        split: name of the split.
        longest: without a number, the first example of at most so many positions is taken.
        number: which example, from 0.

    Raises:
        UserError: the split has none such.
    """
    task.load_dataset(split)
    dataset = task.dataset(split)
    if number is None:
        short = (k for k in range(len(dataset)) if dataset.num_tokens(k) <= longest)
        number = next(short, None)
        if number is None:
            raise UserError(
                f"no example of {split} has at most {longest} positions: raise --longest"
            )
    if not 0 <= number < len(dataset):
        raise UserError(
            f"--example is {number}, but {split} has {len(dataset)} examples, numbered from 0"
        )
    return number, dataset.collater([dataset[number]])


@torch.no_grad()
def attention_maps(model: nn.Module, sample: dict) -> list[AttentionMaps]:
    """Return the attention maps of every layer.

    Of a pair of documents those of the second; where attention stays in chunks, of the first chunk.

    Args:
        model: an LRA model in evaluation mode.
        sample: a batch of one example.

    Raises:
        UserError: the model has no attention or one without maps, or its input is too long.
    """
    maps: list[AttentionMaps] = []

    def keep(function: AttentionFunction, inputs: tuple) -> None:
        if len(maps) < model.cfg.encoder_layers:
            maps.append(function.attention_map(*inputs))

    mixing = [module for module in model.modules() if isinstance(module, AttentionFunction)]
    hooks = [module.register_forward_pre_hook(keep) for module in mixing]
    try:
        model(**sample["net_input"])
    finally:
        for hook in hooks:
            hook.remove()
    if not maps:
        raise UserError("the model has no attention function, so there is no map to draw")
    return maps


def chosen(maps: AttentionMaps, numbers: Sequence[int] | None) -> Iterator[tuple[str, Tensor]]:
    """Yield names and maps (positions, positions): some of a layer, then the mean of all.

    Args:
        maps: of one layer.
        numbers: which; three spread over all when None. A layer with one map has just that.

    Raises:
        UserError: there is no map of such a number.
    """
    count = len(maps.weights)
    if count == 1:
        yield "all channels", maps.weights[0]
        return
    for number in numbers if numbers is not None else (0, count // 2, count - 1):
        if not 0 <= number < count:
            raise UserError(f"there is no {maps.kind} {number}: they are 0 to {count - 1}")
        yield f"{maps.kind} {number}", maps.weights[number]
    yield f"mean of {count} {maps.kind}s", maps.weights.mean(0)


def draw(
    file: Path,
    checkpoints: Sequence[Path],
    data: Path | None,
    split: str,
    longest: int,
    number: int | None,
    layers: Sequence[int] | None,
    channels: Sequence[int] | None,
) -> None:
    """Draw maps of the same input: a line of pictures a layer, models beside each other.

    Args:
        file: name of the picture (PNG); the weights go beside it as CSV, zeros left out.
        checkpoints: of one or several models.
        data: directory of the prepared data; where the models were trained from when None.
        split: name of the split that the input is taken from.
        longest: without ``number``, the first example of at most so many positions is taken.
        number: which example, from 0.
        layers: which layers, from 0; the first, the middle and the last when None.
        channels: which channels or heads, from 0; three spread over all when None.

    Raises:
        UserError: something asked for is not there, or matplotlib is not, or the picture cannot be
            written.
    """
    pyplot = load_pyplot()
    kinds: dict[Path, str] = {}
    columns: dict[tuple[Path, str], dict[int, Tensor]] = {}
    for checkpoint in checkpoints:
        model, task = load(checkpoint, data)
        number, sample = example(task, split, longest, number)
        maps = attention_maps(model, sample)
        kinds[checkpoint] = _kind(model)
        if layers is None:
            layers = sorted({0, len(maps) // 2, len(maps) - 1})
        for layer in layers:
            if not 0 <= layer < len(maps):
                raise UserError(f"there is no layer {layer}: they are 0 to {len(maps) - 1}")
            for name, weights in chosen(maps[layer], channels if maps[layer].kind else None):
                columns.setdefault((checkpoint, name), {})[layer] = weights
    figure, panels = pyplot.subplots(
        len(layers),
        len(columns),
        figsize=(2.3 * len(columns), 2.6 * len(layers)),
        squeeze=False,
        layout="constrained",
    )
    labels = _labels(kinds)
    records = []
    for across, ((checkpoint, name), found) in enumerate(columns.items()):
        label = labels[checkpoint]
        for down, layer in enumerate(layers):
            panel, weights = panels[down, across], found[layer]
            panel.imshow(weights.numpy(), cmap="Greys", vmin=0, interpolation="nearest")
            panel.set_title(
                f"{literal(label)}\n{name}, max {weights.max():.2g}", fontsize="x-small"
            )
            panel.tick_params(labelsize="xx-small")
            for at in weights.nonzero().tolist():
                records.append([label, layer, name, *at, f"{weights[tuple(at)]:.6g}"])
    for down, layer in enumerate(layers):
        panels[down, 0].set_ylabel(f"layer {layer}: output position", fontsize="x-small")
    for panel in panels[-1]:
        panel.set_xlabel("input position", fontsize="x-small")
    head = ["model", "layer", "map", "output_position", "input_position", "weight"]
    save(figure, head, records, file)
    pyplot.close(figure)


def _kind(model: nn.Module) -> str:
    function = next(module for module in model.modules() if isinstance(module, AttentionFunction))
    return f"{getattr(model.cfg, 'layer_type', 'vit')} {function.name}"


def _labels(kinds: dict[Path, str]) -> dict[Path, str]:
    """Tell checkpoints of one kind apart by their paths below the directory common to all."""
    counts = Counter(kinds.values())
    common = os.path.commonpath([checkpoint.parent.absolute() for checkpoint in kinds])
    return {
        checkpoint: kind if counts[kind] == 1 else f"{kind} {os.path.relpath(checkpoint, common)}"
        for checkpoint, kind in kinds.items()
    }
