"""Performer: softmax by random features, FAVOR+ (arXiv 2009.14794)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_csp.modules.attention import (
    AttentionContext,
    WideAttention,
    check_counts,
    option,
    register_attention,
)
from fairseq_csp.modules.attention._features import draw_projection, mix_features
from fairseq_csp.modules.lengths import SequenceLengths

SOFTMAX_EPS = 1e-4
RELU_EPS = 1e-3
SMALLEST_TOTAL = 1e-30


@dataclass
class PerformerOptions:
    """The function's options.

    Raises:
        UserError: there are no features, or the updates are negative.
    """

    features: int = option(256, "random features")
    kernel: str = option("softmax", "what the features stand for", choices=("softmax", "relu"))
    redraw: int = option(0, "the features are drawn again every so many updates (0: never)")

    def __post_init__(self) -> None:
        check_counts("performer", self, features=1, redraw=0)


@register_attention("performer", options=PerformerOptions)
class PerformerAttention(WideAttention):
    """``y_i = sum_j f(q_i).f(k_j) v_j / sum_j f(q_i).f(k_j)`` with random features f.

    With x' = x / Z^(1/4), ``f(x) = m^(-1/2) (exp(W x' - |x'|^2 / 2 - M) + 1e-4)``, where M, which
    carries no gradient, is the largest entry of W q' for a query, and of W k' over the row's own
    valid positions for the keys; for the kernel ``relu`` ``f(x) = relu(W x') + 1e-3``.

    No parameters. Buffer ``projection`` W (m, Z): blocks of Z orthogonal rows with the norms of
    normal vectors.
    """

    uses_dropout = False
    projection: Tensor

    def __init__(self, context: AttentionContext, options: PerformerOptions | None = None) -> None:
        super().__init__(context, options)
        width = context.query_dim // context.heads
        self.register_buffer("projection", draw_projection(self.options.features, width))

    def set_num_updates(self, num_updates: int) -> None:
        """Draw the features again if it is time; fairseq says how many updates were made."""
        redraw = self.options.redraw
        if redraw and num_updates and num_updates % redraw == 0:
            # the same in every process and after resuming
            seed = num_updates * self.context.num_layers + self.context.layer
            generator = torch.Generator().manual_seed(seed)
            features, width = self.projection.shape
            self.projection.copy_(draw_projection(features, width, generator))

    def mix_wide(
        self, values: Tensor, lengths: SequenceLengths, queries: Tensor, keys: Tensor
    ) -> Tensor:
        """Mix (batch * heads, channels, positions)."""
        scale = queries.size(1) ** -0.25
        queries, keys = queries * scale, keys * scale
        projection = self.projection.to(queries.dtype)
        if self.options.kernel == "relu":
            queries = (projection @ queries).relu() + RELU_EPS
            keys = (projection @ keys).relu() + RELU_EPS
        else:
            directed = projection @ queries
            largest = directed.detach().amax(1, keepdim=True)
            queries = self._exponential(queries, directed, largest)
            directed = projection @ keys
            if not lengths.full:
                directed = directed.masked_fill(~lengths.mask, -torch.inf)
            largest = directed.detach().amax((1, 2), keepdim=True)
            keys = self._exponential(keys, directed, largest.masked_fill(largest.isinf(), 0))
        # a row without positions has no weights
        return mix_features(queries, lengths.zero_padding(keys), values, least=SMALLEST_TOTAL)

    def _exponential(self, x: Tensor, directed: Tensor, largest: Tensor) -> Tensor:
        half = x.square().sum(1, keepdim=True) / 2
        features = (directed - half - largest).exp() + SOFTMAX_EPS
        return features * self.options.features**-0.5
