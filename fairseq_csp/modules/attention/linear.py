"""Linear attention with ``elu(x) + 1`` (arXiv 2006.16236)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fairseq_csp.modules.attention import WideAttention, register_attention
from fairseq_csp.modules.attention._features import mix_features
from fairseq_csp.modules.lengths import SequenceLengths

EPS = 1e-6


@register_attention("linear")
class LinearAttention(WideAttention):
    """``y_i = sum_j f(q_i).f(k_j) v_j / (sum_j f(q_i).f(k_j) + 1e-6)`` with ``f(x) = elu(x) + 1``.

    No parameters, no scale of queries and keys.
    """

    uses_dropout = False

    def mix_wide(
        self, values: Tensor, lengths: SequenceLengths, queries: Tensor, keys: Tensor
    ) -> Tensor:
        """Mix (batch * heads, channels, positions)."""
        # f(0) is 1: padded keys are set to 0 behind it
        keys = lengths.zero_padding(_Features.apply(keys))
        return mix_features(_Features.apply(queries), keys, values, eps=EPS)


class _Features(torch.autograd.Function):
    """``elu(x) + 1``, whose derivative can be told from the result."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        # torch's elu takes up to three times as long
        features = x.clamp(max=0).exp_().add_(F.relu(x))
        ctx.save_for_backward(features)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        (features,) = ctx.saved_tensors
        return features.clamp(max=1).mul_(grad)
