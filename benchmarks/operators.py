"""One operator in a process of its own: python -m benchmarks.operators SPECIFICATION."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import naive
from benchmarks.measure import Machine, best_times, serve
from fairseq_csp.modules.attention import AttentionContext, make_attention
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.moving_average import MovingAverage
from fairseq_csp.modules.norms import LayerNorm, ScaleNorm
from fairseq_csp.ops.csp import channel_wise_sample_permutation
from fairseq_csp.ops.csp.naive import permute_naive
from fairseq_csp.ops.dropout import dropout
from fairseq_csp.ops.ema import moving_average_naive

LAYER = {"layer": 1, "num_layers": 4}
COMPONENTS = 16
DROPOUT = 0.1

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Operator:
    """An operator and its direct formula, on (batch, channels, positions).

    Attributes:
        ours: the operator.
        naive: the direct formula.
        parameters: what holds the parameters of both.
        ours_positions_first: whether positions come before channels in memory.
        naive_positions_first: the same for the direct formula.
    """

    ours: Function
    naive: Function
    parameters: nn.Module = field(default_factory=nn.Module)
    ours_positions_first: bool = False
    naive_positions_first: bool = True


def csp(channels: int) -> Operator:
    """CSP in the layout of the layers."""
    attention = make_attention("csp", AttentionContext(channels, **LAYER), {})
    return Operator(lambda x: attention(x, _rows(x)), _naive_csp)


def csp_function(channels: int) -> Operator:
    """CSP by the public function, with positions before channels."""

    def ours(x: Tensor) -> Tensor:
        return channel_wise_sample_permutation(x.transpose(1, 2), **LAYER).transpose(1, 2)

    return Operator(ours, _naive_csp, ours_positions_first=True)


def moving_average(channels: int, truncation: int | None = None) -> Operator:
    """MEGA's moving average."""
    move = MovingAverage(channels, COMPONENTS, truncation)

    def direct(x: Tensor) -> Tensor:
        parameters = (move.delta, move.alpha, move.beta, move.gamma, move.omega)
        return moving_average_naive(x, *parameters, truncation=truncation)

    return Operator(lambda x: move(x, _rows(x)), direct, move, naive_positions_first=False)


def dropout_of(channels: int) -> Operator:
    """Dropout."""
    return Operator(lambda x: dropout(x, DROPOUT, training=True), lambda x: F.dropout(x, DROPOUT))


def scale_norm(channels: int) -> Operator:
    """Scale norm over the channels."""
    norm = ScaleNorm(channels)

    def direct(x: Tensor) -> Tensor:
        return naive.scale_norm(x.transpose(1, 2), norm.scalar, norm.eps).transpose(1, 2)

    return Operator(norm, direct, norm)


def layer_norm(channels: int) -> Operator:
    """Layer norm over the channels."""
    norm = LayerNorm(channels)

    def direct(x: Tensor) -> Tensor:
        x = F.layer_norm(x.transpose(1, 2), (channels,), norm.weight, norm.bias, norm.eps)
        return x.transpose(1, 2)

    return Operator(norm, direct, norm)


OPERATORS: dict[str, Callable[..., Operator]] = {
    "csp": csp,
    "csp function": csp_function,
    "moving average": moving_average,
    "dropout": dropout_of,
    "scale norm": scale_norm,
    "layer norm": layer_norm,
}


def measure_operator(machine: Machine, spec: dict) -> dict:
    """Measure forward and backward pass of an operator.

    Args:
        machine: where it runs.
        spec: ``operator`` (one of ``OPERATORS``), ``shape`` (batch, channels, positions),
            ``options`` of the operator, ``naive`` (the direct formula), ``budget`` (seconds).

    Returns:
        ``seconds``, ``peak_bytes`` and ``copies``, the peak in sizes of the values; without
        ``naive`` also ``copy_seconds``, a plain copy of the values.
    """
    torch.manual_seed(0)
    batch, channels, positions = spec["shape"]
    operator = OPERATORS[spec["operator"]](channels, **spec["options"])
    operator.parameters.to(machine.device)
    if spec["naive"]:
        function, positions_first = operator.naive, operator.naive_positions_first
    else:
        function, positions_first = operator.ours, operator.ours_positions_first

    shape = (batch, positions, channels) if positions_first else (batch, channels, positions)
    values, grad = torch.randn(2, *shape, device=machine.device)
    if positions_first:
        values, grad = values.transpose(1, 2), grad.transpose(1, 2)
    values.requires_grad_()

    def clear() -> None:
        values.grad = None
        operator.parameters.zero_grad(set_to_none=True)

    def call() -> None:
        clear()
        function(values).backward(grad)

    machine.limit_memory()
    peak = machine.peak_bytes(call, clear)
    copies = peak / (values.numel() * values.element_size())
    (seconds,) = best_times(machine, [call], spec["budget"])
    answer = {"seconds": seconds, "peak_bytes": peak, "copies": copies}
    if not spec["naive"]:
        (answer["copy_seconds"],) = best_times(machine, [values.detach().clone], spec["budget"])
    return answer


def _naive_csp(x: Tensor) -> Tensor:
    return permute_naive(x.transpose(1, 2), **LAYER).transpose(1, 2)


def _rows(x: Tensor) -> SequenceLengths:
    return SequenceLengths.of(None, x.size(0), x.size(2), x.device)


if __name__ == "__main__":
    serve(measure_operator)
