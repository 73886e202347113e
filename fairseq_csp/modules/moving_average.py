"""MEGA's multi-dimensional damped exponential moving average as a module."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.ops.ema import circular_kernel, convolve, ema_kernel


class MovingAverage(nn.Module):
    """``EMA(x) + omega * x`` in both directions (arXiv 2209.10655, section 3.1).

    Args:
        dim: channels D.
        components: exponential components N of each channel and direction.
        truncation: lags kept at most; all of them when None.
    """

    def __init__(self, dim: int, components: int = 16, truncation: int | None = None) -> None:
        super().__init__()
        self.truncation = truncation
        self.delta = nn.Parameter(torch.randn(2 * dim, components, 1) * 0.2)
        self.alpha = nn.Parameter(torch.randn(2 * dim, components, 1) * 0.2)
        signs = 1.0 - 2.0 * (torch.arange(components) % 2)
        self.beta = nn.Parameter(torch.randn(2 * dim, components, 1) * 0.02 + signs[:, None])
        self.gamma = nn.Parameter(torch.randn(2 * dim, components))
        self.omega = nn.Parameter(torch.randn(dim))
        # the longest kernel so far, between the ends of shared_kernels
        self._shared = False
        self._kept: Tensor | None = None

    def forward(self, x: Tensor, lengths: SequenceLengths) -> Tensor:
        """Average (batch, D, positions) over the positions; padding counts as 0."""
        x = lengths.zero_padding(x)
        circle = circular_kernel(self._kernel(x.size(2)), self.omega, x.size(2))
        return convolve(x, circle)

    def _kernel(self, positions: int) -> Tensor:
        lags = min(positions, self.truncation or positions)
        if not self._shared:
            return self._compute(lags)
        if self._kept is None or self._kept.size(1) < lags:
            self._kept = self._compute(lags)
        return self._kept[:, :lags]

    def _compute(self, lags: int) -> Tensor:
        return ema_kernel(self.delta, self.alpha, self.beta, self.gamma, lags)


@contextmanager
def shared_kernels(model: nn.Module) -> Iterator[None]:
    """Compute the kernel of each moving average of a model once for all that is encoded inside.

    The parameters must not change inside; their gradients add up.
    """
    averages = [module for module in model.modules() if isinstance(module, MovingAverage)]
    for average in averages:
        average._shared = True
    try:
        yield
    finally:
        for average in averages:
            average._shared = False
            average._kept = None
