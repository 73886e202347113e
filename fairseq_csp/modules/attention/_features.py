"""Attention whose weights are products of features of the query and of the key."""

import torch
from torch import Tensor

from fairseq_csp.modules.lengths import SequenceLengths


def mix_features(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sum values with the weights ``f(q_i).f(k_j)``, without the weights themselves.

    Args:
        queries: their features, (batch, features, positions).
        keys: the same, 0 at padded positions.
        values: (batch, channels, positions).

    Returns:
        The sums (batch, channels, positions), and those of the weights (batch, 1, positions).
    """
    sums = values @ keys.transpose(1, 2)
    return sums @ queries, keys.sum(2).unsqueeze(1) @ queries


def divide(mixed: Tensor, total: Tensor, lengths: SequenceLengths) -> Tensor:
    """Divide sums by those of their weights, which may be 0 at padded positions.

    Args:
        mixed: (batch, channels, positions).
        total: (batch, 1, positions).
        lengths: valid positions of each row.
    """
    if not lengths.full:
        total = total.masked_fill(~lengths.mask, 1)
    return mixed * total.reciprocal()


def draw_projection(features: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw directions for random features (arXiv 2009.14794, section 2.4).

    Returns:
        (features, width), float32: blocks of ``width`` orthonormal rows, each scaled by the norm
        of a normal vector of its own.
    """
    count = -(-features // width)
    blocks, upper = torch.linalg.qr(torch.randn(count, width, width, generator=generator))
    # the decomposition's choice of signs would prefer some directions
    blocks = blocks * upper.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)
    rows = blocks.transpose(1, 2).flatten(0, 1)[:features]
    return rows * torch.randn(features, width, generator=generator).norm(dim=1, keepdim=True)
