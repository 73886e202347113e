"""From a row's positions to one vector."""

import torch
from torch import Tensor

from fairseq_csp.modules.rows import Rows


def pool(x: Tensor, rows: Rows, how: str) -> Tensor:
    """Pool (batch, channels, positions) to (batch, channels), float32 or wider.

    Args:
        x: what to pool; padded positions may hold anything.
        rows: valid positions of each row.
        how: ``mp``, the mean of the valid positions, or ``cls``, the first position.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if how == "cls":
        return x[:, :, 0].to(wide)
    return rows.zero_padding(x).sum(2, dtype=wide) / rows.lengths[:, None]
