"""Attention whose weights are products of features of the query and of the key."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def mix_features(
    queries: Tensor, keys: Tensor, values: Tensor, *, least: float = 0.0, eps: float = 0.0
) -> Tensor:
    """Average values with the weights ``f(q_i).f(k_j)``, without the weights themselves.

    Args:
        queries: their features, (batch, features, positions).
        keys: the same, 0 at padded positions.
        values: (batch, channels, positions).
        least: smallest sum of a query's weights that is divided by.
        eps: what is added to that sum.

    Returns:
        (batch, channels, positions), in memory in the order of the values.
    """
    return _MixFeatures.apply(queries, keys, values, least, eps)


class _MixFeatures(torch.autograd.Function):
    """The sums of values and of weights have one backward pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, queries: Tensor, keys: Tensor, values: Tensor, least: float, eps: float
    ) -> Tensor:
        sums = torch.cat([values @ keys.transpose(1, 2), keys.sum(2).unsqueeze(1)], dim=1)
        total = sums[:, -1:] @ queries
        scale = total.clamp(min=least).add_(eps).reciprocal_()
        mixed = _product(sums[:, :-1], queries, values).mul_(scale)
        # what is not divided by has no gradient
        ctx.save_for_backward(queries, keys, values, sums, mixed, scale, scale * (total >= least))
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, sums, mixed, scale, slope = ctx.saved_tensors
        batch, channels, positions = grad.shape
        if grad.stride(1) == 1:
            both = grad.new_empty(batch, positions, channels + 1).transpose(1, 2)
        else:
            both = grad.new_empty(batch, channels + 1, positions)
        torch.mul(grad, scale, out=both[:, :-1])
        both[:, -1:] = (grad * mixed).sum(1, keepdim=True).mul_(slope).neg_()
        of_sums = both @ queries.transpose(1, 2)
        of_pairs, of_keys = of_sums[:, :-1], of_sums[:, -1:].transpose(1, 2)
        return (
            _product(sums.transpose(1, 2), both, queries),
            _product(of_pairs.transpose(1, 2), values, keys).add_(of_keys),
            _product(of_pairs, keys, values),
            None,
            None,
        )


def _product(weights: Tensor, x: Tensor, like: Tensor) -> Tensor:
    """Multiply (batch, a, b) and (batch, b, positions), in memory in the order of ``like``."""
    if like.stride(1) == 1:
        return (x.transpose(1, 2) @ weights.transpose(1, 2)).transpose(1, 2)
    return weights @ x


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
