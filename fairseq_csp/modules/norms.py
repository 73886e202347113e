"""Normalisations over the channels of (batch, channels, positions)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.ops.norms import layer_norm, rms_norm


class LayerNorm(nn.LayerNorm):
    """Layer normalisation of each position's channels (arXiv 1607.06450)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channels, positions) over the channels."""
        return layer_norm(x, self.weight, self.bias, self.eps)


class ScaleNorm(nn.Module):
    """``scalar * x / sqrt(mean(x^2) + eps)`` over each position's channels (arXiv 1910.05895)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.scalar = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channels, positions) over the channels."""
        return rms_norm(x, self.scalar, self.eps)


class RMSNorm(nn.Module):
    """``weight * x / sqrt(mean(x^2) + eps)`` over each position's channels (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, channels, positions) over the channels."""
        return rms_norm(x, self.weight, self.eps)


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
            self.momentum,  # type: ignore[arg-type]
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
