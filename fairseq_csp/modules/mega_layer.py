"""One encoder layer of MEGA (arXiv 2209.10655, section 3.2), with any attention function."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import AttentionFunction
from fairseq_csp.modules.gated_attention import GatedAttention
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.moving_average import build_moving_average
from fairseq_csp.modules.norms import SequenceNorm
from fairseq_csp.modules.pointwise import (
    NormalizedFeedForward,
    activation,
    activation_dropout,
    linear,
    linear_split,
    normal_linear,
    silu_linear,
)
from fairseq_csp.ops.gates import gated_residual
from fairseq_csp.ops.layers import gated_mixing, linear_silu


class GatedMovingAverage(GatedAttention):
    """Moving average, attention and the two gates around them.

    Args:
        dim: model channels D.
        hidden_dim: value channels H.
        z_dim: query and key channels Z.
        components: components N of the moving average.
        attention: what mixes the positions.
        activation_fn: name of the activation.
        norm_type: name of the normalisation.
        prenorm: whether it comes first rather than last.
        dropout: probability of dropping a model channel.
        hidden_dropout: probability of dropping a value.
        feature_dropout: drop whole channels of a row.
        relative_bias: ``simple`` or ``rotary``.
        max_positions: most positions of a row.
        chunk_size: attention stays inside chunks of this size; -1: the whole row.
        truncation: lags of the moving average kept at most; all when None.
        ema: its kind, ``real`` or ``complex``.
    """

    joint_projection = "mx_proj"

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        z_dim: int,
        components: int,
        *,
        attention: AttentionFunction,
        activation_fn: str,
        norm_type: str,
        prenorm: bool,
        dropout: float,
        hidden_dropout: float,
        feature_dropout: bool,
        relative_bias: str,
        max_positions: int,
        chunk_size: int = -1,
        truncation: int | None = None,
        ema: str = "real",
    ) -> None:
        super().__init__(attention, z_dim)
        self.sizes = (dim, self.query_dim, hidden_dim, dim)
        self.prenorm = prenorm
        self.dropout = dropout
        self.hidden_dropout = hidden_dropout
        self.feature_dropout = feature_dropout
        self.chunk_size = chunk_size
        self.activation = activation(activation_fn)
        self.norm = SequenceNorm(norm_type, dim)
        self.move = build_moving_average(ema, dim, components, truncation)
        self.v_proj = normal_linear(dim, hidden_dim)
        self.mx_proj = normal_linear(dim, sum(self.sizes))
        self.h_proj = normal_linear(hidden_dim, dim)
        reach = chunk_size if chunk_size > 0 else max_positions
        self.rel_pos_bias = self.build_bias(relative_bias, reach)

    def forward(self, x: Tensor, lengths: SequenceLengths) -> Tensor:
        """Map (batch, D, positions) to the same shape."""
        residual = x
        if self.prenorm:
            x = self.norm(x)
        plain = self.activation is nn.functional.silu and not self.feature_dropout
        if plain:
            weight, bias = self.v_proj.weight, self.v_proj.bias
            values = linear_silu(x, weight, bias, self.hidden_dropout, self.training)
        else:
            values = self._activate(self.activation, linear(self.v_proj, x), self.hidden_dropout)
        average = self.move(x, lengths)
        if plain and not self.query_dim:
            mixed = self._attend(values, average[:, :0], lengths)
            maps = (self.mx_proj.weight, self.mx_proj.bias, self.h_proj.weight, self.h_proj.bias)
            out = gated_mixing(average, mixed, residual, *maps, self.dropout, self.training)
            return out if self.prenorm else self.norm(out)
        average = self._activate(nn.functional.silu, average, self.dropout)
        update, queries, reset, direct = linear_split(self.mx_proj, average, self.sizes)
        mixed = self._attend(values, nn.functional.silu(queries), lengths)
        mixed = silu_linear(self.h_proj, reset, mixed)
        if plain:
            out = gated_residual(residual, update, direct, mixed, self.dropout, self.training)
        else:
            candidate = self._activate(self.activation, direct + mixed, self.dropout)
            # under autocast the residual stream is wider than what is added to it
            gate = torch.sigmoid(update).to(residual.dtype)
            out = torch.lerp(residual, candidate.to(residual.dtype), gate)
        return out if self.prenorm else self.norm(out)

    def _attend(self, values: Tensor, shared: Tensor, lengths: SequenceLengths) -> Tensor:
        positions = values.size(2)
        if not 0 < self.chunk_size < positions:
            return self.attend(values, shared, lengths)
        if positions % self.chunk_size:
            raise UserError(
                f"--chunk-size {self.chunk_size} does not divide the {positions} positions"
            )
        chunks = positions // self.chunk_size
        lengths = lengths.chunks(self.chunk_size)
        return _join(self.attend(_cut(values, chunks), _cut(shared, chunks), lengths), chunks)

    def _activate(self, function: Callable[[Tensor], Tensor], x: Tensor, p: float) -> Tensor:
        return activation_dropout(function, x, p, self.training, self.feature_dropout)

    def rows_before_queries(self) -> int:
        """Return the channels of the update gate, which come first."""
        return self.sizes[0]


def _cut(x: Tensor, chunks: int) -> Tensor:
    """Cut (batch, channels, positions) to (batch * chunks, channels, positions / chunks)."""
    return x.unflatten(2, (chunks, -1)).transpose(1, 2).flatten(0, 1)


def _join(x: Tensor, chunks: int) -> Tensor:
    """Undo :func:`_cut`."""
    return x.unflatten(0, (-1, chunks)).transpose(1, 2).flatten(2)


class MegaEncoderLayer(nn.Module):
    """A gated moving average and its feed-forward block, under their published names."""

    def __init__(self, mega_layer: GatedMovingAverage, nffn: NormalizedFeedForward | None) -> None:
        super().__init__()
        self.mega_layer = mega_layer
        self.nffn = nffn

    def forward(self, x: Tensor, lengths: SequenceLengths) -> Tensor:
        """Map (batch, D, positions) to the same shape."""
        x = self.mega_layer(x, lengths)
        return x if self.nffn is None else self.nffn(x)
