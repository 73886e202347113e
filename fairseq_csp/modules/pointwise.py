"""Linear maps and feed-forward blocks in the layout (batch, channels, positions)."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from fairseq.utils import get_activation_fn
from torch import Tensor, nn

from fairseq_csp.modules.norms import SequenceNorm
from fairseq_csp.ops import linear as ops
from fairseq_csp.ops.dropout import dropout as drop_numbers
from fairseq_csp.ops.gates import dropout_add, silu_dropout
from fairseq_csp.ops.layers import feed_forward


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply an ``nn.Linear`` to the channels of (batch, channels, positions)."""
    return ops.linear(x, layer.weight, layer.bias)


def linear_split(layer: nn.Linear, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Apply an ``nn.Linear`` to the channels and split those of the result into parts.

    Args:
        layer: the map, in the dtype of ``x`` but for autocast.
        x: (batch, inputs, positions), any floating dtype.
        sizes: channels of each part, all outputs together.

    Returns:
        One (batch, size, positions) for each size, in the dtype of ``x`` or of autocast.
    """
    return ops.linear_split(x, layer.weight, layer.bias, sizes)


def silu_linear(layer: nn.Linear, x: Tensor, factor: Tensor | None = None) -> Tensor:
    """Apply an ``nn.Linear`` to the channels of ``silu(x)``, or of ``silu(x) * factor``.

    Args:
        layer: the map, in the dtype of ``x`` but for autocast.
        x: (batch, inputs, positions), any floating dtype.
        factor: (batch, inputs, positions), the dtype of ``x``, or None for 1.

    Returns:
        (batch, outputs, positions), in the dtype of ``x`` or of autocast.
    """
    return ops.silu_linear(x, layer.weight, layer.bias, factor)


def normal_linear(inputs: int, outputs: int, std: float = 0.02) -> nn.Linear:
    """Return an ``nn.Linear`` with weights from N(0, std^2) and biases of 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


def dropout(x: Tensor, p: float, training: bool, whole_channels: bool) -> Tensor:
    """Drop single numbers of (batch, channels, positions), or whole channels of a row."""
    if whole_channels:
        return F.dropout1d(x, p, training)
    return drop_numbers(x, p, training)


def activation_dropout(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    p: float,
    training: bool,
    whole_channels: bool,
) -> Tensor:
    """Apply an activation function to (batch, channels, positions), then :func:`dropout`."""
    if function is F.silu and not whole_channels:
        return silu_dropout(x, p, training)
    return dropout(function(x), p, training, whole_channels)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return an activation function by fairseq's name for it, or ``silu``."""
    return F.silu if name == "silu" else get_activation_fn(name)


class NormalizedFeedForward(nn.Module):
    """Feed-forward block with its normalisation and residual (arXiv 2209.10655, figure 2b).

    Args:
        dim: channels.
        hidden_dim: channels inside.
        activation_fn: name of the activation.
        norm_type: name of the normalisation.
        prenorm: whether it comes first rather than last.
        dropout: probability of dropping an output.
        hidden_dropout: probability of dropping a hidden number.
        feature_dropout: drop whole channels of a row.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        activation_fn: str,
        norm_type: str,
        prenorm: bool,
        dropout: float,
        hidden_dropout: float,
        feature_dropout: bool,
    ) -> None:
        super().__init__()
        self.norm = SequenceNorm(norm_type, dim)
        self.fc1 = normal_linear(dim, hidden_dim)
        self.fc2 = normal_linear(hidden_dim, dim)
        self.activation = activation(activation_fn)
        self.prenorm = prenorm
        self.dropout = dropout
        self.hidden_dropout = hidden_dropout
        self.feature_dropout = feature_dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, dim, positions) to the same shape."""
        residual = x
        if self.prenorm:
            x = self.norm(x)
        kept_whole = self.activation is F.silu and not (self.training and self.hidden_dropout)
        if kept_whole and not self.feature_dropout:
            maps = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
            x = feed_forward(x, residual, *maps, self.dropout, self.training)
            return x if self.prenorm else self.norm(x)
        x = linear(self.fc1, x)
        if kept_whole:
            x = silu_linear(self.fc2, x)
        else:
            p, whole_channels = self.hidden_dropout, self.feature_dropout
            x = activation_dropout(self.activation, x, p, self.training, whole_channels)
            x = linear(self.fc2, x)
        if self.feature_dropout:
            x = dropout(x, self.dropout, self.training, whole_channels=True) + residual
        else:
            x = dropout_add(x, residual, self.dropout, self.training)
        return x if self.prenorm else self.norm(x)
