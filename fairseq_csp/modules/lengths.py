"""Which positions of a padded batch are valid."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fairseq_csp.ops.csp import sequence_lengths


class SequenceLengths:
    """The valid positions of each row of a batch, on the device and on the host.

    Attributes:
        host: one integer a row.
        positions: positions of every row, padding included.
        full: whether no row holds padding, as far as is known without asking the device.
        packed: whether the rows lie end to end in one, see :mod:`fairseq_csp.modules.packing`.
        tensor: (batch,) int64, on the device.
        mask: (batch, 1, positions) bool, true at valid positions, on the device.

    Args:
        host: one integer a row; None where they are on the device alone.
        positions: positions of every row.
        device: where the values are.
        on_device: makes the tensor of what is on the device already.
        full: whether no row holds padding; found from ``host`` when None.
    """

    packed = False

    def __init__(
        self,
        host: Sequence[int] | None,
        positions: int,
        device: torch.device,
        on_device: Callable[[], Tensor] | None = None,
        full: bool | None = None,
    ) -> None:
        self._host = None if host is None else tuple(host)
        self.positions = positions
        self.device = device
        if full is None:
            full = self._host is not None and all(n == positions for n in self._host)
        self.full = full
        self._on_device = on_device
        self._kept: dict[Hashable, Any] = {}

    @classmethod
    def of(
        cls,
        lengths: Tensor | np.ndarray | Sequence[int] | None,
        batch: int,
        positions: int,
        device: torch.device,
    ) -> "SequenceLengths":
        """Check the lengths of a batch and bring them to the host, once.

        ``torch.compile`` takes numbers on the host for constants, so that other lengths would be
        another graph: while it looks on, a tensor or an array of them stays what it is, is not
        checked, and counts as one of rows with padding.

        Args:
            lengths: (batch,) valid positions of each row, or None for all. For a tensor on a GPU
                the host waits.
            batch: number of rows.
            positions: positions of every row.
            device: where the values are.

        Raises:
            ValueError: a length is not between 1 and ``positions``.
        """
        if torch.compiler.is_compiling() and isinstance(lengths, Tensor | np.ndarray):
            tensor = torch.as_tensor(lengths).to(device, torch.int64, non_blocking=True)
            return cls(None, positions, device, lambda: tensor)
        return cls(sequence_lengths(lengths, batch, positions), positions, device)

    @property
    def host(self) -> tuple[int, ...]:
        """One integer a row; where they are on a GPU alone the host waits."""
        if self._host is None:
            self._host = tuple(self.tensor.tolist())
        return self._host

    @property
    def tensor(self) -> Tensor:
        """(batch,) int64, on the device."""
        return self.kept("tensor", self._on_device or self._copied)

    def _copied(self) -> Tensor:
        return torch.tensor(self.host).to(self.device, non_blocking=True)

    @property
    def mask(self) -> Tensor:
        """(batch, 1, positions) bool, on the device."""
        return self.kept("mask", self._masked)

    def _masked(self) -> Tensor:
        positions = torch.arange(self.positions, device=self.device)
        return positions < self.tensor[:, None, None]

    def zero_padding(self, values: Tensor) -> Tensor:
        """Set the padded positions of ``values`` (batch, channels, positions) to 0."""
        if self.full:
            return values
        if values.device.type != "cpu" or torch.compiler.is_compiling():
            return values.masked_fill(~self.mask, 0)
        return _ZeroPadding.apply(values, self.host)

    def of_positions(self, positions: int) -> "SequenceLengths":
        """Return the same lengths of rows with another number of positions."""
        full = self.full and positions == self.positions
        return SequenceLengths(self._host, positions, self.device, lambda: self.tensor, full)

    def kept(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what ``make`` makes of the lengths, once a batch: the layers share it.

        Args:
            key: names what is made, with all that it depends on beside the lengths.
            make: called where nothing is kept under the key.
        """
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def chunks(self, size: int) -> "SequenceLengths":
        """Return the lengths that result when each row is cut into chunks of ``size`` positions."""
        return self.kept(("chunks", size), lambda: self._chunks(size))

    def _chunks(self, size: int) -> "SequenceLengths":
        count = self.positions // size
        host = self._host and [
            min(max(n - k * size, 0), size) for n in self._host for k in range(count)
        ]

        def on_device() -> Tensor:
            before = torch.arange(count, device=self.device) * size
            return (self.tensor[:, None] - before).clamp(0, size).flatten()

        return SequenceLengths(host, size, self.device, on_device, self.full or None)

    def repeat(self, times: int) -> "SequenceLengths":
        """Return the lengths that result when each row is repeated, one after the other."""
        if times == 1:
            return self
        return self.kept(("repeat", times), lambda: self._repeat(times))

    def _repeat(self, times: int) -> "SequenceLengths":
        host = self._host and [n for n in self._host for _ in range(times)]

        def on_device() -> Tensor:
            return self.tensor[:, None].expand(-1, times).flatten()

        return SequenceLengths(host, self.positions, self.device, on_device, self.full)


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
