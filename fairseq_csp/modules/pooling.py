"""From a row's positions to one vector."""

import torch
from torch import Tensor

from fairseq_csp.modules.lengths import SequenceLengths


def pool(x: Tensor, lengths: SequenceLengths, how: str) -> Tensor:
    """Pool (batch, channels, positions) to (batch, channels), float32 or wider.

    Args:
        x: what to pool; padded positions may hold anything; of packed rows (1, channels, all).
        lengths: valid positions of each row.
        how: ``mp``, the mean of the valid positions, or ``cls``, the first position.
    """
    if lengths.packed:
        parts = zip(lengths.unpack(x), lengths.buckets, strict=True)
        return torch.cat([pool(part, bucket, how) for part, bucket in parts])
    wide = torch.promote_types(x.dtype, torch.float32)
    if how == "cls":
        return x[:, :, 0].to(wide)
    return lengths.zero_padding(x).sum(2, dtype=wide) / lengths.tensor[:, None]
