"""Attention by the Laplace function (arXiv 2209.10655, section 3.3)."""

import math

import torch
from torch import Tensor

from fairseq_csp.modules.attention import register_attention
from fairseq_csp.modules.attention._scores import ElementwiseAttention, has_kernel_as

MEAN = 0.707107
DEVIATION = 0.282095


@register_attention("laplace")
class LaplaceAttention(ElementwiseAttention):
    """The Laplace function of each score."""

    graphable = True

    @has_kernel_as("laplace")
    def function(self, scores: Tensor) -> Tensor:
        """Return ``(1 + erf((x - mean) / (deviation * sqrt 2))) / 2``, shape and dtype as given."""
        return 0.5 * (1 + torch.erf((scores - MEAN) / (DEVIATION * math.sqrt(2))))
