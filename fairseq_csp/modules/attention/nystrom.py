"""Nyströmformer (arXiv 2102.03902): softmax attention through landmarks."""

import math
from dataclasses import dataclass
from functools import partial

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
from fairseq_csp.modules.attention._blocks import lengths_of
from fairseq_csp.modules.attention._cells import cell_means, disjoint_cells
from fairseq_csp.modules.lengths import SequenceLengths

ITERATIONS = 6
# positions of which the convolution makes one product
BLOCK = 64


@dataclass
class NystromOptions:
    """Options of the landmarks.

    Raises:
        UserError: there is no landmark, or the taps are neither 0 nor odd.
    """

    landmarks: int = option(64, "landmarks of Nystromformer")
    conv: int = option(35, "taps of Nystromformer's convolution of the values, odd; 0: none")

    def __post_init__(self) -> None:
        if self.landmarks < 1:
            raise UserError(f"--nystrom-landmarks is {self.landmarks}; it must be at least 1")
        if self.conv < 0 or (self.conv and self.conv % 2 == 0):
            raise UserError(f"--nystrom-conv is {self.conv}; it must be odd, or 0 for none")


@register_attention("nystrom", options=NystromOptions)
class NystromAttention(QueryKeyAttention):
    """``F A+ (B v) + conv(v)`` with softmax kernels between queries, keys and their landmarks.

    ``F = S(q kl^T)``, ``A = S(ql kl^T)``, ``B = S(q k^T)`` with the scale ``1/sqrt(Z)``; the
    landmarks ql and kl are means of balanced segments of the row's own positions, and A+ comes from
    6 iterations. A row of no more positions than landmarks has exact softmax attention. Cost
    ``O(n m + m^3)``; parameters: the taps of one filter a head.
    """

    uses_dropout = False

    def __init__(self, context: AttentionContext, options: NystromOptions | None = None) -> None:
        super().__init__(context, options)
        taps = self.options.conv
        if taps:
            bound = 1 / math.sqrt(taps)
            self.conv = nn.Parameter(torch.empty(context.heads, 1, taps).uniform_(-bound, bound))

    def forward(
        self,
        values: Tensor,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: nn.Module | None = None,
    ) -> Tensor:
        """Mix (batch, heads * channels, positions); kernels are computed in float32 or wider."""
        values, queries, keys = map(lengths.zero_padding, (values, queries, keys))
        mixed = self._attend(values, lengths, queries, keys)
        if self.options.conv:
            mixed = mixed + self._convolve(values)
        return mixed.to(values.dtype)

    def _attend(
        self, values: Tensor, lengths: SequenceLengths, queries: Tensor, keys: Tensor
    ) -> Tensor:
        m = self.options.landmarks
        if min(lengths.host) > m:
            return self._by_landmarks(values, lengths, queries, keys)
        halves, order = lengths.kept(("nystrom", m), lambda: _divided(lengths, m))
        parts = []
        for (index, own), attend in zip(halves, (self._exact, self._by_landmarks), strict=True):
            if own.host:
                v, q, k = (x[index, :, : own.positions] for x in (values, queries, keys))
                mixed = attend(v, own, q, k)
                parts.append(F.pad(mixed, (0, lengths.positions - own.positions)))
        return torch.cat(parts)[order]

    def _exact(
        self, values: Tensor, lengths: SequenceLengths, queries: Tensor, keys: Tensor
    ) -> Tensor:
        values, queries, keys = map(self.fold, (values, queries, keys))
        lengths = lengths.repeat(self.context.heads)
        kernel = _softmax(queries * queries.size(1) ** -0.5, keys, lengths)
        mixed = torch.bmm(kernel.to(values.dtype), values.transpose(1, 2))
        return self.unfold(mixed.transpose(1, 2))

    def _by_landmarks(
        self, values: Tensor, lengths: SequenceLengths, queries: Tensor, keys: Tensor
    ) -> Tensor:
        wide = torch.promote_types(values.dtype, torch.float32)
        query_landmarks, key_landmarks = (
            self.fold(cell_means(x.to(wide), lengths, self.options.landmarks, disjoint_cells))
            for x in (queries, keys)
        )
        values, queries, keys = (self.fold(x) for x in (values, queries, keys))
        lengths = lengths.repeat(self.context.heads)
        mixed = self._product(values, queries, keys, query_landmarks, key_landmarks, lengths)
        return self.unfold(mixed)

    @staticmethod
    def _product(
        values: Tensor,
        queries: Tensor,
        keys: Tensor,
        query_landmarks: Tensor,
        key_landmarks: Tensor,
        lengths: SequenceLengths,
    ) -> Tensor:
        dtype, scale = values.dtype, queries.size(1) ** -0.5
        seen = _softmax(query_landmarks.to(dtype) * scale, keys, lengths)
        summaries = torch.bmm(seen.to(dtype), values.transpose(1, 2))
        with torch.autocast(values.device.type, enabled=False):
            between = _softmax(query_landmarks * scale, key_landmarks)
            summaries = torch.bmm(pseudo_inverse(between), summaries.to(between.dtype))
        kernel = _softmax(queries * scale, key_landmarks.to(dtype))
        # in this order the gradient of the kernel is contiguous
        return torch.bmm(kernel.to(dtype), summaries.to(dtype)).transpose(1, 2)

    def _convolve(self, values: Tensor) -> Tensor:
        """Convolve the channels of each head with its filter; zeros stand outside the row.

        As a product of blocks of positions with a banded matrix, which is many times as fast as a
        convolution in groups.
        """
        heads, taps = self.context.heads, self.conv.size(2)
        batch, _, positions = values.shape
        block = max(BLOCK, taps - 1)
        blocks = -(-positions // block)
        more = (blocks + 1) * block - positions - taps // 2
        x = F.pad(values.transpose(1, 2), (0, 0, taps // 2, more))
        x = x.unflatten(2, (heads, -1)).unflatten(1, (blocks + 1, block))
        x = x.permute(3, 2, 0, 1, 4)
        seen = torch.cat([x[:, :, :, :-1], x[:, : taps - 1, :, 1:]], dim=1)
        mixed = _band(self.conv.squeeze(1).to(values.dtype), block) @ seen.flatten(2)
        mixed = mixed.unflatten(2, (batch, blocks, -1)).permute(2, 3, 1, 0, 4)
        return mixed.flatten(3).flatten(1, 2)[:, :positions].transpose(1, 2)


def _band(filters: Tensor, rows: int) -> Tensor:
    """Return matrices whose row i holds the filter from column i on.

    Args:
        filters: (heads, taps).
        rows: how many.

    Returns:
        (heads, rows, rows + taps - 1).
    """
    taps = filters.size(1)
    # rows longer by one entry, laid end to end, are shifted by one from row to row
    longer = F.pad(filters, (0, rows)).unsqueeze(1).expand(-1, rows, -1).flatten(1)
    columns = rows + taps - 1
    return longer[:, : rows * columns].unflatten(1, (rows, columns))


def _softmax(queries: Tensor, keys: Tensor, lengths: SequenceLengths | None = None) -> Tensor:
    """Return the weights of queries (batch, Z, a) over keys (batch, Z, b), (batch, a, b)."""
    scores = torch.bmm(queries.transpose(1, 2), keys)
    if lengths is not None and not lengths.full:
        scores = scores.masked_fill(~lengths.mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=2, dtype=torch.promote_types(scores.dtype, torch.float32))


def pseudo_inverse(kernel: Tensor) -> Tensor:
    """Approximate the Moore-Penrose inverse by 6 iterations of third order.

    Args:
        kernel: (batch, m, m) with rows that sum to 1, float32 or wider.

    Returns:
        The same shape and dtype.
    """
    eye = torch.eye(kernel.size(1), dtype=kernel.dtype, device=kernel.device)
    # the row sums are 1: this bounds the product of the two norms, of each matrix by itself
    inverse = kernel.transpose(1, 2) / kernel.sum(1).amax(1)[:, None, None]
    # Z (13 I - P (15 I - P (7 I - P))) / 4 with P = A Z; sums within products are launches less
    seven, fifteen, quarter = 7 * eye, 15 * eye, 3.25 * eye
    for _ in range(ITERATIONS):
        product = torch.bmm(kernel, inverse)
        inner = torch.baddbmm(fifteen, product, seven - product, alpha=-1)
        inverse = torch.bmm(inverse, torch.baddbmm(quarter, product, inner, alpha=-0.25))
    return inverse


def _divided(
    lengths: SequenceLengths, most: int
) -> tuple[list[tuple[Tensor, SequenceLengths]], Tensor]:
    """Divide rows into those of at most so many positions and the others.

    Returns:
        Of both the indices of the rows and their lengths, and where each row stands when the two
        follow one another.
    """
    rows = range(len(lengths.host))
    divided = [row for row in rows if lengths.host[row] <= most]
    few = len(divided)
    divided += [row for row in rows if lengths.host[row] > most]
    order = torch.tensor(divided)
    order = torch.stack([order, order.argsort()]).to(lengths.device, non_blocking=True)
    halves = []
    for index, some in ((order[0, :few], divided[:few]), (order[0, few:], divided[few:])):
        host = [lengths.host[row] for row in some]
        halves.append(
            (
                index,
                SequenceLengths(
                    host,
                    max(host, default=0),
                    lengths.device,
                    partial(lengths_of, lengths, index),
                ),
            )
        )
    return halves, order[1]
