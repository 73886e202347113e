"""Softmax over the keys near a query, a few global ones and some blocks drawn at random.

The patterns of LRA's local attention (arXiv 2011.04006), Longformer (arXiv 2004.05150) and BigBird
(arXiv 2007.14062). Queries are taken in blocks, each with the stretch of keys that its windows
cover, so that time and memory grow with the number of weights.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_csp.modules.attention._base import (
    AttentionContext,
    QueryKeyAttention,
    check_counts,
)
from fairseq_csp.modules.attention._blocks import in_blocks_of_rows
from fairseq_csp.modules.attention._scores import softmax_of_valid
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.relative_bias import by_distance, check_reach
from fairseq_csp.ops.dropout import dropout

# smaller blocks of queries make products of matrices that are too small to be fast
SMALLEST_BLOCK = 32


def check_pattern(name: str, options: Any) -> None:
    """Check the options that the three functions share.

    Raises:
        UserError: the window is below 1, or another number is negative.
    """
    check_counts(name, options, window=1, global_=0, random=0)


class PatternAttention(QueryKeyAttention):
    """``y_i = sum_{j in A(i)} S_j(q_i.k_j / sqrt(Z) + bias) v_j``.

    A(i) holds the keys at most ``window`` away, the first ``global`` keys, for the first ``global``
    queries all keys, and the keys of ``random`` blocks of ``window`` positions, drawn for each
    block of queries. No parameters. The buffer ``random_blocks`` (blocks of P positions, random)
    is int64: block a of a row of n positions sees ``random_blocks[a] mod ceil(n / window)``.

    Raises:
        UserError: blocks are to be drawn and it is not known for how many positions.
    """

    uses_bias = True

    random_blocks: Tensor

    def __init__(self, context: AttentionContext, options: Any = None) -> None:
        super().__init__(context, options)
        if self.options.random:
            blocks = -(-self.reach // self.options.window)
            generator = torch.Generator().manual_seed(context.layer)
            shape = (blocks, self.options.random)
            drawn = torch.randint(torch.iinfo(torch.int64).max, shape, generator=generator)
            self.register_buffer("random_blocks", drawn)

    def mix(
        self,
        values: Tensor,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: nn.Module | None,
    ) -> Tensor:
        """Mix (batch * heads, channels, positions)."""
        queries = queries * queries.size(1) ** -0.5
        positions = values.size(2)
        line = None if bias is None else bias.line(positions).to(queries.dtype)
        seen_by_all = min(self.options.global_, positions)
        near = partial(self._near, line, seen_by_all)
        per_query = 3 * max(min(self.options.window, positions), SMALLEST_BLOCK) + seen_by_all
        per_query += self.options.random * self.options.window
        out = in_blocks_of_rows(near, positions * per_query, lengths, values, queries, keys)
        if not seen_by_all:
            return out
        seeing_all = in_blocks_of_rows(
            partial(self._all, line),
            positions * seen_by_all,
            lengths,
            values,
            queries[:, :, :seen_by_all],
            keys,
        )
        return torch.cat([seeing_all, out[:, :, seen_by_all:]], dim=2)

    def _all(
        self,
        line: Tensor | None,
        lengths: SequenceLengths,
        values: Tensor,
        queries: Tensor,
        keys: Tensor,
    ) -> Tensor:
        """Let the first queries see all keys."""
        scores = queries.transpose(1, 2) @ keys
        if line is not None:
            scores = scores + by_distance(line, keys.size(2), 0, queries.size(2))
        weights = softmax_of_valid(scores, lengths)
        return values @ self._drop(weights).to(values.dtype).transpose(1, 2)

    def _near(
        self,
        line: Tensor | None,
        seen_by_all: int,
        lengths: SequenceLengths,
        values: Tensor,
        queries: Tensor,
        keys: Tensor,
    ) -> Tensor:
        """Let every query see its window, the global keys and the random blocks."""
        positions = keys.size(2)
        window = min(self.options.window, positions)
        random = self.options.random if window < positions else 0
        # random blocks are as long as the window
        block = window if random else min(max(window, SMALLEST_BLOCK), positions)
        cut = _Blocks(line, lengths, positions, block, window, seen_by_all)
        parts = [cut.near()]
        if seen_by_all:
            parts.append(cut.global_())
        if random:
            check_reach(max(lengths.host), self.reach, f"{self.name}'s pattern")
            parts.append(cut.random(self.random_blocks))
        queries = cut(queries).transpose(2, 3)
        scores = []
        for part in parts:
            score = queries @ part.of(keys)
            if part.bias is not None:
                score = score + part.bias
            scores.append(score.masked_fill(~part.seen, torch.finfo(score.dtype).min))
        wide = torch.promote_types(queries.dtype, torch.float32)
        weights = torch.cat(scores, dim=3).softmax(3, dtype=wide)
        weights = self._drop(weights).to(values.dtype)
        sizes = [score.size(3) for score in scores]
        mixed = [
            part.of(values) @ some.transpose(2, 3)
            for part, some in zip(parts, weights.split(sizes, dim=3), strict=True)
        ]
        return sum(mixed[1:], mixed[0]).transpose(1, 2).flatten(2)[:, :, :positions]

    def _drop(self, weights: Tensor) -> Tensor:
        return dropout(weights, self.context.dropout, self.training)


class _Part(NamedTuple):
    """Keys that the queries of a block may see.

    Attributes:
        of: gives their keys or values, (batch, blocks, width, count), from (batch, width, n).
        seen: (batch, blocks, block, count) bool or a shape that is spread to it.
        bias: the same, floating; None without.
    """

    of: Callable[[Tensor], Tensor]
    seen: Tensor
    bias: Tensor | None


class _Blocks:
    """Rows cut into blocks of queries.

    Args:
        line: the relative bias by distance, (2 * positions - 1,), or None.
        lengths: valid positions of each row.
        positions: those of all rows.
        block: queries of a block.
        window: how far a query sees.
        seen_by_all: number of global keys.
    """

    def __init__(
        self,
        line: Tensor | None,
        lengths: SequenceLengths,
        positions: int,
        block: int,
        window: int,
        seen_by_all: int,
    ) -> None:
        self.line, self.positions, self.block = line, positions, block
        self.window, self.seen_by_all = window, seen_by_all
        self.blocks = -(-positions // block)
        self.more = self.blocks * block - positions
        self.valid = lengths.tensor[:, None, None, None]
        self.at = torch.arange(self.blocks * block, device=lengths.device).view(-1, block, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Cut (batch, width, positions) to (batch, blocks, width, block)."""
        return F.pad(x, (0, self.more)).unflatten(2, (self.blocks, self.block)).transpose(1, 2)

    def near(self) -> _Part:
        """Return the keys of a block and ``window`` more on both sides."""
        count = self.block + 2 * self.window
        where = self.at[:, :1] - self.window + torch.arange(count, device=self.at.device)
        distance = where[0] - self.at[0]
        seen = (where >= self.seen_by_all) & (where < self.valid) & (distance.abs() <= self.window)
        bias = None
        if self.line is not None:
            # the same for all blocks; what is farther than any pair is not seen
            last = self.positions - 1
            bias = self.line[distance.clamp(-last, last) + last]

        def of(x: Tensor) -> Tensor:
            x = F.pad(x, (self.window, self.more + self.window))
            return x.unfold(2, count, self.block).transpose(1, 2)

        return _Part(of, seen, bias)

    def global_(self) -> _Part:
        """Return the first keys."""
        where = torch.arange(self.seen_by_all, device=self.at.device)
        bias = None
        if self.line is not None:
            bias = by_distance(self.line, self.seen_by_all, 0, self.positions)
            bias = F.pad(bias, (0, 0, 0, self.more)).unflatten(0, (self.blocks, self.block))
        return _Part(lambda x: x[:, None, :, : self.seen_by_all], where < self.valid, bias)

    def random(self, drawn: Tensor) -> _Part:
        """Return the keys of the blocks that each block draws, but those that it sees already."""
        block, blocks, batch = self.block, self.blocks, self.valid.size(0)
        rows = torch.arange(blocks, device=self.at.device)
        # blocks beyond those drawn hold padding
        drawn = drawn[rows.clamp(max=len(drawn) - 1)]
        # (batch, blocks, random)
        chosen = drawn % ((self.valid[:, :, 0] + block - 1) // block).clamp(min=1)
        again = (chosen[..., None] == chosen[..., None, :]).tril(-1).any(3)
        where = chosen[..., None] * block + torch.arange(block, device=self.at.device)
        fresh = (where < self.valid) & (where >= self.seen_by_all) & ~again[..., None]
        where = where.flatten(2)[:, :, None]
        seen = fresh.flatten(2)[:, :, None] & ((where - self.at).abs() > self.window)
        bias = None
        if self.line is not None:
            # of each distance between blocks the numbers of their pairs
            line = F.pad(self.line, (self.more, self.more)).unfold(0, 2 * block - 1, block)
            pairs = by_distance(line, block, 0, block)
            apart = (chosen - rows[:, None] + blocks - 1).flatten()
            bias = pairs.index_select(0, apart).view(*chosen.shape, block, block)
            bias = bias.transpose(2, 3).flatten(3)
        index = torch.arange(batch, device=chosen.device)[:, None, None] * blocks + chosen

        def of(x: Tensor) -> Tensor:
            some = self(x).flatten(0, 1).index_select(0, index.flatten())
            return some.view(*chosen.shape, -1, block).transpose(2, 3).flatten(3)

        return _Part(of, seen, bias)
