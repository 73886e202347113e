"""The Transformer's encoder layer (arXiv 1706.03762), with any attention function.

The layout is that of fairseq's multi-head attention: (positions, batch, channels).
"""

import math
from collections.abc import Sequence

from fairseq.modules import LayerNorm
from torch import Tensor, nn

from fairseq_csp.modules.attention import (
    AttentionFunction,
    CarriedAttention,
    HeadAttention,
    Stream,
)
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.pointwise import activation
from fairseq_csp.modules.relative_bias import rotary_angles, rotate
from fairseq_csp.ops.dropout import dropout


class MultiHeadAttention(nn.Module):
    """``W_o attention(W_v x)``, with ``W_q x`` and ``W_k x`` where the function has queries.

    They are rotated by their positions where the function's context wants that (arXiv 2104.09864).

    Args:
        dim: model channels.
        attention: what mixes the positions.
    """

    def __init__(self, dim: int, attention: AttentionFunction) -> None:
        super().__init__()
        self.rotary = attention.context.rotary and attention.uses_queries
        self.head_dim = dim // attention.context.heads
        inputs = ["v_proj"]
        if attention.uses_queries:
            # the published order
            inputs = ["k_proj", "v_proj", "q_proj"]
        maps = {name: nn.Linear(dim, dim) for name in (*inputs, "out_proj")}
        for name, layer in maps.items():
            setattr(self, name, layer)
        _initialise([maps[name] for name in inputs], maps["out_proj"])
        self.attention = attention

    def forward(self, x: Tensor, lengths: SequenceLengths) -> Tensor:
        """Map (positions, batch, dim) to the same shape."""
        names = ["v_proj", *(["q_proj", "k_proj"] if self.attention.uses_queries else [])]
        values, *others = (getattr(self, name)(x) for name in names)
        if self.rotary:
            others = [self._rotate(vectors) for vectors in others]
        values, *others = (vectors.permute(1, 2, 0) for vectors in (values, *others))
        mixed = self.attention(values, lengths, *others)
        return self.out_proj(mixed.permute(2, 0, 1))

    def _rotate(self, vectors: Tensor) -> Tensor:
        """Rotate each head of (positions, batch, dim) by the positions."""
        sine, cosine = (
            angle[:, None, None]
            for angle in rotary_angles(len(vectors), self.head_dim, vectors.device)
        )
        heads = vectors.unflatten(2, (-1, self.head_dim))
        return rotate(heads, sine, cosine).flatten(2).to(vectors.dtype)

    def drop_dead_weights(self, state_dict: dict[str, Tensor], prefix: str) -> int:
        """Remove the queries' and keys' projections where the function has neither.

        Args:
            state_dict: a state dict in which this module's names start with ``prefix``; changed.
            prefix: with the dot at its end.

        Returns:
            How many numbers were dropped.
        """
        if self.attention.uses_queries:
            return 0
        dead = [name for name in state_dict if name.startswith((f"{prefix}q_", f"{prefix}k_"))]
        return sum(state_dict.pop(name).numel() for name in dead)


def _initialise(inputs: Sequence[nn.Linear], output: nn.Linear) -> None:
    """Initialise the projections as fairseq does in its multi-head attention."""
    for projection in inputs:
        nn.init.xavier_uniform_(projection.weight, gain=1 / math.sqrt(2))
    nn.init.xavier_uniform_(output.weight)
    nn.init.zeros_(output.bias)


class TransformerEncoderLayer(nn.Module):
    """Attention and feed-forward block, each with a residual and a layer norm.

    Args:
        self_attn: what mixes the positions.
        dim: model channels.
        ffn_dim: channels inside the feed-forward block.
        activation_fn: name of its activation.
        dropout: probability of dropping a model channel.
        hidden_dropout: probability of dropping a hidden number.
        prenorm: normalise what goes into each block rather than what comes out.
    """

    def __init__(
        self,
        self_attn: MultiHeadAttention | HeadAttention | CarriedAttention,
        dim: int,
        ffn_dim: int,
        *,
        activation_fn: str,
        dropout: float,
        hidden_dropout: float,
        prenorm: bool = False,
    ) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.self_attn_layer_norm = LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)
        self.final_layer_norm = LayerNorm(dim)
        self.activation = activation(activation_fn)
        self.dropout = dropout
        self.hidden_dropout = hidden_dropout
        self.prenorm = prenorm
        if isinstance(self_attn, CarriedAttention):
            context = self_attn.context
            # what comes out of the last layer's stream is not used
            if prenorm or context.layer + 1 < context.num_layers:
                self.stream_layer_norm = LayerNorm(dim)

    def forward(
        self, x: Tensor, lengths: SequenceLengths, repeat: int = 0, stream: Stream | None = None
    ) -> Tensor:
        """Map (positions, batch, dim) to the same shape.

        Args:
            x: what to map.
            lengths: valid positions of each row.
            repeat: how many times this layer was applied before, where layers share their weights.
            stream: the second stream, if the attention carries one; its vectors are replaced.
        """
        if self.prenorm:
            x = x + self._mix(self.self_attn_layer_norm(x), lengths, repeat, stream)
            return x + self._feed_forward(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x + self._mix(x, lengths, repeat, stream))
        return self.final_layer_norm(x + self._feed_forward(x))

    def _mix(
        self, x: Tensor, lengths: SequenceLengths, repeat: int, stream: Stream | None
    ) -> Tensor:
        whole = not isinstance(self.self_attn, MultiHeadAttention)
        attention = self.self_attn if whole else self.self_attn.attention
        attention.layer = attention.context.layer + repeat
        if stream is not None:
            mixed = self._mix_with(x.permute(1, 2, 0), lengths, stream).permute(2, 0, 1)
        elif whole:
            mixed = self.self_attn(x.permute(1, 2, 0), lengths).permute(2, 0, 1)
        else:
            mixed = self.self_attn(x, lengths)
        return dropout(mixed, self.dropout, self.training)

    def _mix_with(self, x: Tensor, lengths: SequenceLengths, stream: Stream) -> Tensor:
        """Mix (batch, dim, positions) and renew the stream, normalised as the positions are."""
        before = stream.vectors
        seen = self.stream_layer_norm(before) if self.prenorm else before
        mixed, update = self.self_attn(x, lengths, seen)
        after = before + dropout(update, self.dropout, self.training)
        last = self.self_attn.layer + 1 == self.self_attn.context.num_layers
        stream.vectors = after if self.prenorm or last else self.stream_layer_norm(after)
        return mixed

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.fc1(x))
        hidden = self.fc2(dropout(hidden, self.hidden_dropout, self.training))
        return dropout(hidden, self.dropout, self.training)


def start_stream(layers: nn.ModuleList, batch: int) -> Stream | None:
    """Begin the second stream of a batch; None where the layers' attention carries none."""
    first = layers[0].self_attn
    return Stream(first.start(batch)) if isinstance(first, CarriedAttention) else None
