"""What functions that replace a multi-head layer have in common."""

import math

import torch
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention._base import AttentionContext, HeadAttention, flag_of
from fairseq_csp.modules.attention.softmax import SoftmaxAttention
from fairseq_csp.modules.lengths import SequenceLengths


class ProjectedAttention(HeadAttention):
    """``W_o softmax(q k^T / sqrt(D/h)) v``; key and value heads may be fewer than query heads.

    A subclass calls :meth:`build_projections` and says how its key heads serve the query heads.
    """

    def build_projections(self, queries: int, keys: int) -> None:
        """Make the maps of ``queries`` query heads and ``keys`` key and value heads.

        They begin as those of fairseq's multi-head attention.
        """
        dim = self.context.value_dim
        self.queries, self.keys = queries, keys
        self.head_dim = dim // self.context.heads
        sizes = {"k_proj": keys, "v_proj": keys, "q_proj": queries}
        for name, heads in sizes.items():
            setattr(self, name, nn.Linear(dim, heads * self.head_dim))
            nn.init.xavier_uniform_(getattr(self, name).weight, gain=1 / math.sqrt(2))
        self.out_proj = nn.Linear(queries * self.head_dim, dim)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)
        self.attend = SoftmaxAttention(
            AttentionContext(
                queries * self.head_dim,
                queries * self.head_dim,
                heads=queries,
                dropout=self.context.dropout,
            )
        )

    def project(self, x: Tensor, lengths: SequenceLengths) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of x (batch, D, positions) with 0 at padding.

        Returns:
            (batch, heads, D/h, positions) with the heads of each.
        """
        x = lengths.zero_padding(x).transpose(1, 2)
        queries, keys, values = (
            lengths.zero_padding(getattr(self, name)(x).transpose(1, 2)).unflatten(
                1, (-1, self.head_dim)
            )
            for name in ("q_proj", "k_proj", "v_proj")
        )
        return self.turn(queries), self.turn(keys), values

    def forward(self, x: Tensor, lengths: SequenceLengths) -> Tensor:
        """Mix the positions of (batch, D, positions)."""
        queries, keys, values = self.project(x, lengths)
        keys, values = self.serve(keys, values, lengths)
        return self.merge(self.attend(*_joined(values, lengths, queries, keys)), lengths)

    def serve(
        self, keys: Tensor, values: Tensor, lengths: SequenceLengths
    ) -> tuple[Tensor, Tensor]:
        """Give each query head the keys and values that serve it.

        Args:
            keys: (batch, key heads, D/h, positions), 0 at padding.
            values: the same shape.
            lengths: valid positions of each row.

        Returns:
            Both as (batch, query heads, D/h, positions).
        """
        times = self.queries // self.keys
        return keys.repeat_interleave(times, 1), values.repeat_interleave(times, 1)

    def merge(self, mixed: Tensor, lengths: SequenceLengths) -> Tensor:
        """Return ``W_o mixed`` for (batch, query heads * D/h, positions), 0 at padding."""
        return lengths.zero_padding(self.out_proj(mixed.transpose(1, 2)).transpose(1, 2))


def _joined(
    values: Tensor, lengths: SequenceLengths, queries: Tensor, keys: Tensor
) -> tuple[Tensor, SequenceLengths, Tensor, Tensor]:
    """Join the heads to the channels, as attention functions take them."""
    return values.flatten(1, 2), lengths, queries.flatten(1, 2), keys.flatten(1, 2)


def divisor_up_to(number: int, most: int) -> int:
    """Return the largest divisor of a number that is at most ``most``, 1 at least."""
    return max(d for d in range(1, max(1, most) + 1) if number % d == 0)


def check_divisor(name: str, key: str, value: int, of: int, what: str) -> int:
    """Return an option's value if it is a divisor of a number.

    Raises:
        UserError: it is none; the message names the flag.
    """
    if value < 1 or of % value:
        raise UserError(f"{flag_of(name, key)} is {value}; it must be a divisor of the {of} {what}")
    return value


def check_least(name: str, least: int, queries: int, keys: int) -> None:
    """Check how many query heads each key head must have.

    Raises:
        UserError: it is negative, or there are not so many; the message names the flag.
    """
    if not 0 <= least <= queries // keys:
        raise UserError(
            f"{flag_of(name, 'least')} is {least}; {queries} query heads for {keys} key heads "
            f"allow 0 to {queries // keys}"
        )


def key_norms(keys: Tensor) -> Tensor:
    """Return the norm of each head of (batch, heads, width, positions), (batch, heads) float64."""
    return keys.detach().flatten(2).norm(dim=2, dtype=torch.float64)


def allocate(shares: Tensor, queries: int, least: int) -> Tensor:
    """Deal query heads to key heads (arXiv 2408.08454).

    Each gets its part of the sum of shares, rounded, halves to even. While they are too many, the
    largest part loses one, while too few, the smallest gains one, of equal ones the first.

    Args:
        shares: (batch, key heads), at least 0, float64; where all are 0 they count as equal.
        queries: query heads to deal.
        least: how many each key head gets before.

    Returns:
        (batch, key heads), int64; each row sums to ``queries``.
    """
    rest = queries - least * shares.size(1)
    total = shares.sum(1, keepdim=True)
    parts = torch.where(total > 0, shares / total.where(total > 0, 1), 1 / shares.size(1))
    heads = (rest * parts).round().long()
    # each part is rounded by a half at most
    for _ in range(shares.size(1) // 2 + 1):
        excess = heads.sum(1, keepdim=True) - rest
        largest, smallest = heads.argmax(1, keepdim=True), heads.argmin(1, keepdim=True)
        heads = heads.scatter_add(1, largest, -(excess > 0).long())
        heads = heads.scatter_add(1, smallest, (excess < 0).long())
    return heads + least


def dealt(heads: Tensor, queries: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Gather for each query head the keys and values that serve it.

    Args:
        heads: (batch, G): the query heads, in order, that each key head serves.
        queries: their number h.
        keys: (batch, G, width, positions).
        values: the same shape.

    Returns:
        Both as (batch, h, width, positions).
    """
    order = torch.arange(queries, device=heads.device).expand(len(heads), -1).contiguous()
    index = torch.searchsorted(heads.cumsum(1), order, right=True)
    row = torch.arange(len(heads), device=heads.device)[:, None]
    return keys[row, index], values[row, index]
