"""The Transformer's encoder layer (arXiv 1706.03762), with any attention function on values.

The layout is that of fairseq's multi-head attention: (positions, batch, channels).
"""

import math
from collections.abc import Sequence

from fairseq.modules import LayerNorm
from torch import Tensor, nn

from fairseq_csp.modules.attention import AttentionFunction, AttentionOptions
from fairseq_csp.modules.attention.scores import SoftmaxAttention
from fairseq_csp.modules.pointwise import activation
from fairseq_csp.modules.rows import Rows
from fairseq_csp.ops.dropout import dropout


class SelfAttention(nn.Module):
    """Multi-head attention of rows to themselves.

    Args:
        dim: model channels.
        heads: attention heads; they divide ``dim``.
        dropout: probability of dropping an attention weight.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (
            nn.Linear(dim, dim) for _ in range(4)
        )
        _initialise([self.k_proj, self.v_proj, self.q_proj], self.out_proj)
        self.softmax = SoftmaxAttention(AttentionOptions(dropout=dropout))

    def forward(self, x: Tensor, rows: Rows, turn: int) -> Tensor:
        """Map (positions, batch, dim) to the same shape; padded keys take no part."""
        values, queries, keys = (
            project(x).unflatten(2, (self.heads, -1)).flatten(1, 2).permute(1, 2, 0)
            for project in (self.v_proj, self.q_proj, self.k_proj)
        )
        mixed = self.softmax(values, rows.repeat(self.heads), queries, keys, None)
        return self.out_proj(mixed.permute(2, 0, 1).unflatten(1, (-1, self.heads)).flatten(2))


class ValueAttention(nn.Module):
    """``W_o attention(W_v x)``: an attention function that needs neither queries nor keys.

    Args:
        dim: channels.
        functions: the attention function for each turn of a layer that is applied repeatedly.
    """

    def __init__(self, dim: int, functions: Sequence[AttentionFunction]) -> None:
        super().__init__()
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        _initialise([self.v_proj], self.out_proj)
        self.functions = nn.ModuleList(functions)

    def forward(self, x: Tensor, rows: Rows, turn: int) -> Tensor:
        """Map (positions, batch, dim) to the same shape."""
        mixed = self.functions[turn](self.v_proj(x).permute(1, 2, 0), rows)
        return self.out_proj(mixed.permute(2, 0, 1))

    def drop_dead_weights(self, state_dict: dict[str, Tensor], prefix: str) -> int:
        """Remove the queries' and keys' projections from published attention weights.

        Args:
            state_dict: a state dict in which this module's names start with ``prefix``; changed.
            prefix: with the dot at its end.

        Returns:
            How many numbers were dropped.
        """
        dead = [name for name in state_dict if name.startswith((f"{prefix}q_", f"{prefix}k_"))]
        return sum(state_dict.pop(name).numel() for name in dead)


def _initialise(inputs: Sequence[nn.Linear], output: nn.Linear) -> None:
    """Initialise the projections as fairseq does in its multi-head attention."""
    for projection in inputs:
        nn.init.xavier_uniform_(projection.weight, gain=1 / math.sqrt(2))
    nn.init.xavier_uniform_(output.weight)
    nn.init.zeros_(output.bias)


class TransformerEncoderLayer(nn.Module):
    """Attention and feed-forward block, each with a residual and then a layer norm.

    Args:
        self_attn: what mixes the positions.
        dim: model channels.
        ffn_dim: channels inside the feed-forward block.
        activation_fn: name of its activation.
        dropout: probability of dropping a model channel.
        hidden_dropout: probability of dropping a hidden number.
    """

    def __init__(
        self,
        self_attn: SelfAttention | ValueAttention,
        dim: int,
        ffn_dim: int,
        *,
        activation_fn: str,
        dropout: float,
        hidden_dropout: float,
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

    def forward(self, x: Tensor, rows: Rows, turn: int = 0) -> Tensor:
        """Map (positions, batch, dim) to the same shape.

        Args:
            x: what to map.
            rows: valid positions of each row.
            turn: how many times this layer was applied before, where layers share their weights.
        """
        mixed = self.self_attn(x, rows, turn)
        x = self.self_attn_layer_norm(x + dropout(mixed, self.dropout, self.training))
        hidden = self.activation(self.fc1(x))
        hidden = self.fc2(dropout(hidden, self.hidden_dropout, self.training))
        return self.final_layer_norm(x + dropout(hidden, self.dropout, self.training))
