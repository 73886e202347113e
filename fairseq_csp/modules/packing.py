"""A batch whose rows lie end to end, without padding."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.ops.packing import pack_rows, unpack_rows


class PackedLengths(SequenceLengths):
    """The lengths of rows that are packed: of one row (1, channels, positions of all).

    What is done at each position by itself needs to know nothing of rows; what mixes positions
    takes them by :meth:`by_bucket`, or has a kernel for them.

    Attributes:
        buckets: the lengths of each bucket of rows, those of similar lengths, in their order.

    Args:
        buckets: the lengths of the rows of each bucket.
        device: where the values are.
    """

    packed = True

    def __init__(self, buckets: Sequence[Sequence[int]], device: torch.device) -> None:
        host = [length for bucket in buckets for length in bucket]
        super().__init__(host, sum(host), device, full=False)
        self.buckets = [SequenceLengths(bucket, max(bucket), device) for bucket in buckets]

    def zero_padding(self, values: Tensor) -> Tensor:
        """Return the values: there is no padding."""
        return values

    def unpack(self, x: Tensor) -> list[Tensor]:
        """Return a padded (rows, channels, positions) for each bucket of (1, channels, all)."""
        return unpack_rows(x, self.host, [len(bucket.host) for bucket in self.buckets])

    def by_bucket(self, function: Callable[..., Tensor], *x: Tensor) -> Tensor:
        """Apply to each bucket what keeps the number of positions.

        Args:
            function: maps one or several (rows, channels, positions), and after them their lengths,
                to (rows, outputs, positions).
            x: (1, channels, positions of all rows), each with channels of its own.

        Returns:
            (1, outputs, positions of all rows).
        """
        parts = zip(*map(self.unpack, x), self.buckets, strict=True)
        return pack_rows([function(*part) for part in parts], self.host)
