"""Kernelised attention with relative positions by Fourier transforms (arXiv 2106.12566)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairseq_csp.modules.attention import (
    AttentionContext,
    WideAttention,
    check_counts,
    option,
    register_attention,
)
from fairseq_csp.modules.attention._blocks import in_blocks_of_rows
from fairseq_csp.modules.attention._features import draw_projection
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.relative_bias import by_distance, check_reach
from fairseq_csp.ops.ema import fast_size

# up to here matrices of all pairs are faster than Fourier transforms: 20 times at 1,024 positions,
# 5 times at 4,096 (64 features, 128 channels)
LONGEST_OF_PAIRS = 8192
# numbers of all products that are transformed together (64 MiB in float32)
MOST_PRODUCTS = 1 << 24


@dataclass
class KernelRpeOptions:
    """The function's options.

    Raises:
        UserError: there are no features.
    """

    features: int = option(64, "random features")
    normalise: bool = option(True, "queries and keys have length 1")

    def __post_init__(self) -> None:
        check_counts("kernel_rpe", self, features=1)


@register_attention("kernel_rpe", options=KernelRpeOptions)
class KernelRpeAttention(WideAttention):
    """``y_i = sum_j w_ij v_j / sum_j w_ij`` with ``w_ij = exp(b[j - i]) f(q_i).f(k_j)``.

    ``f(x) = exp(W x - |x|^2 / 2)`` of queries and keys of length 1. For each feature the sums over
    j are correlations with exp(b): in long rows they are computed by Fourier transforms, some
    features at a time, in shorter ones from the weights, which is faster there.

    Parameter ``rpe`` b (heads, 2P - 1), at first N(0, 0.02), entry P - 1 + d for the key d after
    the query. Buffer ``projection`` W (features, Z), drawn as Performer's.
    """

    uses_dropout = False

    def __init__(self, context: AttentionContext, options: KernelRpeOptions | None = None) -> None:
        super().__init__(context, options)
        width = context.query_dim // context.heads
        self.rpe = nn.Parameter(torch.empty(context.heads, 2 * self.reach - 1))
        nn.init.normal_(self.rpe, std=0.02)
        self.register_buffer("projection", draw_projection(self.options.features, width))

    def mix_wide(
        self, values: Tensor, lengths: SequenceLengths, queries: Tensor, keys: Tensor
    ) -> Tensor:
        """Mix (batch * heads, channels, positions)."""
        positions, longest = values.size(2), max(1, *lengths.host)
        check_reach(longest, self.reach, "kernel_rpe's bias")
        values, queries, keys = (x[:, :, :longest] for x in (values, queries, keys))
        lengths = lengths.of_positions(longest)
        decay = self._decay(lengths, values.dtype)
        # the weights' own sums are those of values of 1
        values = torch.cat([values, values.new_ones(len(values), 1, longest)], dim=1)
        queries, keys = self._features(queries, keys, lengths)
        count = max(1, MOST_PRODUCTS // (2 * values.numel()))
        if longest <= LONGEST_OF_PAIRS:
            sums = in_blocks_of_rows(_sum_pairs, longest**2, lengths, values, decay, queries, keys)
        elif count >= self.options.features:
            sums = _correlate(decay, values, queries, keys)
        else:
            sums = torch.zeros_like(values)
            for some in zip(queries.split(count, 1), keys.split(count, 1), strict=True):
                sums = sums + checkpoint(_correlate, decay, values, *some, use_reentrant=False)
        mixed, total = sums.split([values.size(1) - 1, 1], dim=1)
        # the largest of decays and features are 1: what is smaller is rounding
        total = total.clamp(min=torch.finfo(total.dtype).eps)
        return F.pad(mixed / total, (0, positions - longest))

    def _decay(self, lengths: SequenceLengths, dtype: torch.dtype) -> Tensor:
        """Return exp(b) over the row's distances, the largest 1: (batch * heads, 2n - 1)."""
        longest = lengths.positions
        unused = self.reach - longest
        numbers = self.rpe[:, unused : unused + 2 * longest - 1].to(dtype)
        numbers = numbers.repeat(len(lengths.host) // self.context.heads, 1)
        distance = torch.arange(1 - longest, longest, device=numbers.device).abs()
        numbers = numbers.masked_fill(distance >= lengths.tensor.clamp(min=1)[:, None], -torch.inf)
        return (numbers - numbers.detach().amax(1, keepdim=True)).exp()

    def _features(
        self, queries: Tensor, keys: Tensor, lengths: SequenceLengths
    ) -> tuple[Tensor, Tensor]:
        """Return f of both, (batch * heads, features, n), scaled where that changes nothing."""
        if self.options.normalise:
            queries, keys = _normalised(queries), _normalised(keys)
        exponents = [
            self.projection.to(x.dtype) @ x - x.square().sum(1, keepdim=True) / 2
            for x in (queries, keys)
        ]
        if not lengths.full:
            exponents[1] = exponents[1].masked_fill(~lengths.mask, -torch.inf)
        # a factor for each query and one for all keys of a row cancel
        largest = [exponents[0].detach().amax(1, keepdim=True)]
        largest.append(exponents[1].detach().amax((1, 2), keepdim=True))
        largest[1] = largest[1].masked_fill(largest[1].isinf(), 0)
        at_query, at_key = (
            (exponent - most).exp() for exponent, most in zip(exponents, largest, strict=True)
        )
        return at_query, at_key


def _normalised(x: Tensor) -> Tensor:
    """Scale (batch, width, positions) to length 1 at each position; 0 stays 0."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / norm.masked_fill(norm == 0, 1)


def _sum_pairs(
    lengths: SequenceLengths, values: Tensor, decay: Tensor, queries: Tensor, keys: Tensor
) -> Tensor:
    """Return what :func:`_correlate` does, by way of the weights of all pairs of positions."""
    weights = (queries.transpose(1, 2) @ keys) * by_distance(
        decay, values.size(2), 0, values.size(2)
    )
    return values @ weights.transpose(1, 2)


def _correlate(decay: Tensor, values: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Return ``sum_r q_ri sum_j decay[j - i] k_rj v_j`` for features r.

    Args:
        decay: (batch, 2n - 1), entry n - 1 + d for the key d after the query.
        values: (batch, channels, n).
        queries: (batch, features, n).
        keys: the same shape.

    Returns:
        (batch, channels, n).
    """
    n = values.size(2)
    size = fast_size(2 * n - 1, values.device)
    kernel = torch.fft.rfft(decay.flip(1), size)[:, None, None]
    products = keys.unsqueeze(2) * values.unsqueeze(1)
    spread = torch.fft.irfft(torch.fft.rfft(products, size) * kernel, size)
    spread = spread[..., n - 1 : 2 * n - 1]
    return torch.einsum("brn,brcn->bcn", queries, spread)
