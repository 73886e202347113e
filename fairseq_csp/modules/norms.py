"""Normalisations over the channels of (batch, channels, positions)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_csp.errors import UserError


class LayerNorm(nn.LayerNorm):
    """Layer normalisation of each position's channels (arXiv 1607.06450)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channels, positions) over the channels."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ScaleNorm(nn.Module):
    """``scalar * x / sqrt(mean(x^2) + eps)`` over each position's channels (arXiv 1910.05895)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.scalar = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channels, positions) over the channels."""
        return x * (self.scalar * _inverse_rms(x, self.eps)).to(x.dtype)


class RMSNorm(nn.Module):
    """``weight * x / sqrt(mean(x^2) + eps)`` over each position's channels (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channels, positions) over the channels."""
        return x * _inverse_rms(x, self.eps).to(x.dtype) * self.weight.unsqueeze(1)


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch normalisation with statistics over all GPUs of a distributed run.

    Outside of one, and between CPU processes, for which torch has no such statistics, it is batch
    normalisation over the process's own batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channels, positions) over batch and positions."""
        if x.is_cuda:
            return super().forward(x)
        if self.training:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )


NORMS = {
    "layernorm": LayerNorm,
    "scalenorm": ScaleNorm,
    "rmsnorm": RMSNorm,
    "batchnorm": nn.BatchNorm1d,
    "syncbatchnorm": SyncBatchNorm,
}
BATCH_NORMS = ("batchnorm", "syncbatchnorm")


def build_norm(name: str, dim: int, eps: float = 1e-5) -> nn.Module:
    """Build a normalisation of (batch, channels, positions).

    Args:
        name: one of ``NORMS``.
        dim: number of channels.
        eps: added to the mean square or the variance.

    Raises:
        UserError: the name is unknown.
    """
    if name not in NORMS:
        raise UserError(f"--norm-type is {name!r}; it must be one of {', '.join(NORMS)}")
    return NORMS[name](dim, eps=eps)


class SequenceNorm(nn.Module):
    """A normalisation under the parameter names of the published MEGA code."""

    def __init__(self, name: str, dim: int) -> None:
        super().__init__()
        self.norm = build_norm(name, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channels, positions)."""
        return self.norm(x)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean_square = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=dtype).square() / x.size(1)
    return torch.rsqrt(mean_square + eps)
