"""Agent attention (arXiv 2312.08874): softmax attention through pooled queries."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import (
    AttentionContext,
    QueryKeyAttention,
    option,
    register_attention,
)
from fairseq_csp.modules.attention._cells import cell_means, covering_cells, grid_means
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.ops.dropout import dropout

TOKENS_OF_TEXT, TOKENS_OF_IMAGES = 64, 49


@dataclass
class AgentOptions:
    """Options of the agents.

    Raises:
        UserError: there is no agent.
    """

    tokens: int | None = option(
        None,
        f"pooled queries of agent attention (default: {TOKENS_OF_TEXT}; on images "
        f"{TOKENS_OF_IMAGES}, a square number)",
    )
    conv: bool = option(True, "agent attention adds a depthwise convolution of the values")

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise UserError(f"--agent-tokens is {self.tokens}; it must be at least 1")


@register_attention("agent", options=AgentOptions)
class AgentAttention(QueryKeyAttention):
    """``S(q A^T/sqrt(Z)) S(A k^T/sqrt(Z)) v + conv(v)`` with agents A pooled from the queries.

    An agent is the mean of the queries in a cell of the row's own positions, on images in one of
    side x side cells. Cost ``O(n a)``; parameters of C channels: ``4 C`` of the convolution with 3
    taps, ``10 C`` on images, where it is 3 x 3.

    Raises:
        UserError: the agents of an image are no square number.
    """

    def __init__(self, context: AttentionContext, options: AgentOptions | None = None) -> None:
        super().__init__(context, options)
        on_grid = context.grid is not None
        tokens = self.options.tokens or (TOKENS_OF_IMAGES if on_grid else TOKENS_OF_TEXT)
        self.tokens, self.side = tokens, math.isqrt(tokens)
        if on_grid and self.side**2 != tokens:
            raise UserError(f"--agent-tokens is {tokens}; on images it must be a square number")
        if self.options.conv:
            channels = context.value_dim
            kind = nn.Conv2d if on_grid else nn.Conv1d
            self.conv = kind(channels, channels, 3, padding=1, groups=channels)

    def forward(
        self,
        values: Tensor,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: nn.Module | None = None,
    ) -> Tensor:
        """Mix (batch, heads * channels, positions); weights are in float32 or wider.

        Raises:
            UserError: a row is not the whole image.
        """
        grid, heads = self.context.grid, self.context.heads
        if grid is not None and set(lengths.host) != {math.prod(grid)}:
            raise UserError(
                f"agent attention pools images of {grid[0]} x {grid[1]} positions; rows have "
                f"{sorted(set(lengths.host))}"
            )
        values, queries, keys = map(lengths.zero_padding, (values, queries, keys))
        wide = queries.to(torch.promote_types(queries.dtype, torch.float32))
        if grid is None:
            agents = cell_means(wide, lengths, self.tokens, covering_cells)
        else:
            agents = grid_means(wide[:, :, : math.prod(grid)], grid, self.side)
        agents = self.fold(agents.to(queries.dtype) * (queries.size(1) // heads) ** -0.5)
        seen = self._weights(agents, self.fold(keys), lengths.repeat(heads))
        spread = self._weights(self.fold(queries), agents, None)
        summaries = torch.bmm(self.fold(values), seen.to(values.dtype).transpose(1, 2))
        mixed = self.unfold(torch.bmm(summaries, spread.to(values.dtype).transpose(1, 2)))
        if self.options.conv:
            mixed = mixed + self._convolve(values)
        return lengths.zero_padding(mixed).to(values.dtype)

    def _weights(self, queries: Tensor, keys: Tensor, lengths: SequenceLengths | None) -> Tensor:
        scores = torch.bmm(queries.transpose(1, 2), keys)
        if lengths is not None and not lengths.full:
            scores = scores.masked_fill(~lengths.mask, torch.finfo(scores.dtype).min)
        wide = torch.promote_types(scores.dtype, torch.float32)
        return dropout(scores.softmax(2, dtype=wide), self.context.dropout, self.training)

    def _convolve(self, values: Tensor) -> Tensor:
        weight, bias = (x.to(values.dtype) for x in (self.conv.weight, self.conv.bias))
        groups, grid = len(weight), self.context.grid
        if grid is None:
            return F.conv1d(values, weight, bias, padding=1, groups=groups)
        size = math.prod(grid)
        image = values[:, :, :size].unflatten(2, grid)
        mixed = F.conv2d(image, weight, bias, padding=1, groups=groups).flatten(2)
        return F.pad(mixed, (0, values.size(2) - size))
