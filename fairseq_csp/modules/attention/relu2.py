"""Attention by squared ReLU (arXiv 2109.08668)."""

import torch.nn.functional as F
from torch import Tensor

from fairseq_csp.modules.attention import register_attention
from fairseq_csp.modules.attention._scores import ElementwiseAttention, has_kernel_as


@register_attention("relu2")
class SquaredReluAttention(ElementwiseAttention):
    """``relu(x)^2`` of each score."""

    graphable = True

    @has_kernel_as("relu2")
    def function(self, scores: Tensor) -> Tensor:
        """Return ``max(x, 0)^2``, in the shape and dtype of the scores."""
        return F.relu(scores).square()
