"""MEGA's multi-dimensional damped exponential moving average as a module."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.ops.ema import (
    circular_kernel,
    convolve,
    damped_rotations,
    ema_kernel,
    recurrent_average,
    takes_recurrence,
)


class MovingAverage(nn.Module):
    """``EMA(x) + omega * x`` in both directions (arXiv 2209.10655, section 3.1).

    Args:
        dim: channels D.
        components: exponential components N of each channel and direction.
        truncation: lags kept at most; all of them when None.
    """

    # whether its components are those of ``recurrent_average``
    recurrent = True

    def __init__(self, dim: int, components: int = 16, truncation: int | None = None) -> None:
        super().__init__()
        self.truncation = truncation
        self._build(dim, components)
        # the longest kernel so far, between the ends of shared_kernels
        self._shared = False
        self._kept: Tensor | None = None

    def _build(self, dim: int, components: int) -> None:
        """Make the parameters."""
        self.delta = nn.Parameter(torch.randn(2 * dim, components, 1) * 0.2)
        self.alpha = nn.Parameter(torch.randn(2 * dim, components, 1) * 0.2)
        signs = 1.0 - 2.0 * (torch.arange(components) % 2)
        self.beta = nn.Parameter(torch.randn(2 * dim, components, 1) * 0.02 + signs[:, None])
        self.gamma = nn.Parameter(torch.randn(2 * dim, components))
        self.omega = nn.Parameter(torch.randn(dim))

    def forward(self, x: Tensor, lengths: SequenceLengths) -> Tensor:
        """Average (batch, D, positions) over the positions; padding counts as 0."""
        x = lengths.zero_padding(x)
        if self.recurrent and takes_recurrence(x, *self.parameters()):
            weights = (self.delta, self.alpha, self.beta, self.gamma, self.omega)
            rows = lengths.host if lengths.packed else ()
            return recurrent_average(x, *weights, self.truncation, rows)
        if lengths.packed:
            return lengths.by_bucket(lambda rows, _: self._average(rows), x)
        return self._average(x)

    def _average(self, x: Tensor) -> Tensor:
        circle = circular_kernel(self._kernel(x.size(2)), self.omega, x.size(2))
        return convolve(x, circle)

    def _kernel(self, positions: int) -> Tensor:
        lags = min(positions, self.truncation or positions)
        if not self._shared:
            return self._compute(lags)
        if self._kept is None or self._kept.size(1) < lags:
            self._kept = self._compute(lags)
        return self._kept if self._kept.size(1) == lags else self._kept[:, :lags]

    def _compute(self, lags: int) -> Tensor:
        return ema_kernel(self.delta, self.alpha, self.beta, self.gamma, lags)


class ComplexMovingAverage(MovingAverage):
    """Megalodon's complex moving average (arXiv 2404.08801, section 3.1) in both directions.

    The kernel of a channel is ``sqrt(1/N) Re sum_n p gamma q^t`` with ``p = sigmoid(alpha)`` and
    ``q = (1 - p sigmoid(delta)) exp(i n (2 pi/N) sigmoid(theta))``, n from 1. Parameters: per
    channel and direction ``4 N + 1``, and one a channel, for the real one ``4 N`` and one.
    """

    recurrent = False

    def _build(self, dim: int, components: int) -> None:
        shape = (2 * dim, components, 1)
        self.alpha = nn.Parameter(torch.randn(shape) * 0.2)
        self.delta = nn.Parameter(torch.randn(shape) * 0.2)
        # speeds D^(-k/D), in another order of k in each direction
        exponents = torch.cat([torch.randperm(dim) + 1 for _ in range(2)]) / dim
        speeds = torch.exp(-exponents * math.log(max(dim, 2)))
        self.theta = nn.Parameter(torch.logit(speeds)[:, None, None])
        gamma = torch.stack([torch.randn(shape[:2]), torch.zeros(shape[:2])], dim=2)
        self.gamma = nn.Parameter(gamma)
        self.omega = nn.Parameter(torch.randn(dim))

    def _compute(self, lags: int) -> Tensor:
        with torch.autocast(self.gamma.device.type, enabled=False):
            alpha, delta, theta = (
                x.squeeze(2).double() for x in (self.alpha, self.delta, self.theta)
            )
            components = alpha.size(1)
            p = torch.sigmoid(alpha)
            size = torch.log1p(-(p * torch.sigmoid(delta)).clamp(max=1 - 1e-7))
            counts = torch.arange(1, components + 1, dtype=torch.float64, device=p.device)
            angle = counts * (2 * math.pi / components) * torch.sigmoid(theta)
            weight = torch.view_as_complex(self.gamma.double()) * p * components**-0.5
            wide = torch.promote_types(self.gamma.dtype, torch.float32)
            return damped_rotations(weight, torch.complex(size, angle), lags, wide)


KINDS = {"real": MovingAverage, "complex": ComplexMovingAverage}


def build_moving_average(
    kind: str, dim: int, components: int, truncation: int | None = None
) -> MovingAverage:
    """Build a moving average.

    Args:
        kind: ``real`` or ``complex``.
        dim: channels D.
        components: exponential components N of each channel and direction.
        truncation: lags kept at most; all of them when None.

    Raises:
        UserError: the kind is unknown.
    """
    if kind not in KINDS:
        raise UserError(f"--ema is {kind!r}; it must be {' or '.join(KINDS)}")
    return KINDS[kind](dim, components, truncation)


@contextmanager
def shared_kernels(model: nn.Module) -> Iterator[None]:
    """Compute the kernel of each moving average of a model once for all that is encoded inside.

    The parameters must not change inside; their gradients add up. Inside of another one it shares
    nothing with that.
    """
    averages = [module for module in model.modules() if isinstance(module, MovingAverage)]
    before = [(average._shared, average._kept) for average in averages]
    for average in averages:
        average._shared, average._kept = True, None
    try:
        yield
    finally:
        for average, kept in zip(averages, before, strict=True):
            average._shared, average._kept = kept
