"""One training step in a process of its own: python -m benchmarks.step SPECIFICATION."""

from collections.abc import Callable
from statistics import mean

import torch
from torch import Tensor, nn

from benchmarks.measure import Machine, all_times, best_times, serve
from benchmarks.models import build_model, random_sample, training_step
from benchmarks.naive import NaiveModel
from fairseq_csp.models.vit import ViTModel


def measure_step(machine: Machine, spec: dict) -> dict:
    """Measure forward and backward pass of the criterion's loss, dropout included.

    Args:
        machine: where it runs.
        spec: ``arch``, ``options`` (flags of the model), ``batch``, ``length``, ``dtype``,
            ``naive`` (the direct formulas), ``products`` (its matrix products as well), ``budget``
            (seconds).

    Returns:
        ``seconds`` (the shortest), ``mean_seconds`` and ``peak_bytes``; with ``products`` also
        ``beside``: the seconds of the step and of its matrix products, timed alternately.
    """
    model = build_model(spec["arch"], spec["length"], **spec["options"]).to(machine.device)
    model = model.to(getattr(torch, spec["dtype"]))
    sample = random_sample(model, spec["batch"], spec["length"])
    step = training_step(model, sample, NaiveModel(model) if spec["naive"] else None)
    machine.limit_memory()
    peak = machine.peak_bytes(step, model.zero_grad)
    (times,) = all_times(machine, [step], spec["budget"])
    answer = {"seconds": min(times), "mean_seconds": mean(times), "peak_bytes": peak}
    if spec["products"]:
        if isinstance(model, ViTModel):
            # its linear maps are applied to all tokens of the batch in one product
            products = matrix_products(model.transformer, 1, spec["batch"] * spec["length"])
        else:
            products = matrix_products(model.encoder, spec["batch"], spec["length"])
        times = best_times(machine, [step, products], spec["budget"])
        answer["beside"] = dict(zip(("step_seconds", "products_seconds"), times, strict=True))
    return answer


def matrix_products(encoder: nn.Module, batch: int, length: int) -> Callable[[], None]:
    """Return a call that makes the matrix products of a training step, and nothing else.

    Of each linear map in the encoder: the product and the bias of the forward pass, the gradients
    of input and weight of the backward pass, in the layout (batch, channels, positions).

    Args:
        encoder: whose linear maps.
        batch: number of rows.
        length: positions of a row.
    """
    operands = []
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.detach(), layer.bias
            bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
            x = weight.new_empty(batch, layer.in_features, length).normal_()
            grad = weight.new_empty(batch, layer.out_features, length).normal_()
            operands.append((weight.expand(batch, -1, -1), bias.unsqueeze(1), x, grad))

    def products() -> None:
        for weight, bias, x, _ in operands:
            torch.baddbmm(bias, weight, x)
        for weight, _, x, grad in reversed(operands):
            _backward(weight, x, grad)

    return products


def _backward(weight: Tensor, x: Tensor, grad: Tensor) -> None:
    torch.bmm(weight.transpose(1, 2), grad)
    torch.bmm(grad, x.transpose(1, 2)).sum(0)


if __name__ == "__main__":
    serve(measure_step)
