"""Which positions of a padded batch are valid."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fairseq_csp.ops.csp import sequence_lengths


class SequenceLengths:
    """The valid positions of each row of a batch, on the device and on the host.

    Attributes:
        host: one integer a row.
        positions: positions of every row, padding included.
        full: whether no row holds padding.
        tensor: (batch,) int64, on the device.
        mask: (batch, 1, positions) bool, true at valid positions, on the device.
    """

    def __init__(self, host: Sequence[int], positions: int, device: torch.device) -> None:
        self.host = tuple(host)
        self.positions = positions
        self.device = device
        self.full = all(length == positions for length in self.host)

    @classmethod
    def of(
        cls, lengths: Tensor | None, batch: int, positions: int, device: torch.device
    ) -> "SequenceLengths":
        """Check the lengths of a batch and bring them to the host, once.

        Args:
            lengths: (batch,) valid positions of each row, or None for all.
            batch: number of rows.
            positions: positions of every row.
            device: where the values are.

        Raises:
            ValueError: a length is not between 1 and ``positions``.
        """
        return cls(sequence_lengths(lengths, batch, positions), positions, device)

    @cached_property
    def tensor(self) -> Tensor:
        """(batch,) int64, on the device."""
        return torch.tensor(self.host).to(self.device, non_blocking=True)

    @cached_property
    def mask(self) -> Tensor:
        """(batch, 1, positions) bool, on the device."""
        positions = torch.arange(self.positions, device=self.device)
        return positions < self.tensor[:, None, None]

    def zero_padding(self, values: Tensor) -> Tensor:
        """Set the padded positions of ``values`` (batch, channels, positions) to 0."""
        if self.full:
            return values
        if values.device.type != "cpu" or torch.compiler.is_compiling():
            return values.masked_fill(~self.mask, 0)
        return _ZeroPadding.apply(values, self.host)

    def chunks(self, size: int) -> "SequenceLengths":
        """Return the lengths that result when each row is cut into chunks of ``size`` positions."""
        count = self.positions // size
        host = [min(max(n - k * size, 0), size) for n in self.host for k in range(count)]
        return SequenceLengths(host, size, self.device)

    def repeat(self, times: int) -> "SequenceLengths":
        """Return the lengths that result when each row is repeated, one after the other."""
        if times == 1:
            return self
        return SequenceLengths(
            [n for n in self.host for _ in range(times)], self.positions, self.device
        )


class _ZeroPadding(torch.autograd.Function):
    """Row by row; on a CPU a mask takes several times as long."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, lengths: tuple[int, ...]) -> Tensor:
        ctx.lengths = lengths
        return _zeroed(values, lengths)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return _zeroed(grad, ctx.lengths), None


def _zeroed(values: Tensor, lengths: tuple[int, ...]) -> Tensor:
    out = values.clone()
    for row, length in zip(out, lengths, strict=True):
        row[:, length:] = 0
    return out
