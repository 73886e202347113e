"""cosFormer: linear attention with weights that fall with the distance (arXiv 2202.08791)."""

import math

import torch
from torch import Tensor

from fairseq_csp.modules.attention import WideAttention, register_attention
from fairseq_csp.modules.attention._features import mix_features
from fairseq_csp.modules.lengths import SequenceLengths

SMALLEST_TOTAL = 1e-6


@register_attention("cosformer")
class CosformerAttention(WideAttention):
    """``y_i = sum_j w_ij v_j / max(sum_j w_ij, 1e-6)``.

    ``w_ij = relu(q_i).relu(k_j) cos(pi/2 (i - j) / n)``, n the row's own number of valid positions
    (the published code takes that of the longest row). No parameters.
    """

    uses_dropout = False

    def mix_wide(
        self, values: Tensor, lengths: SequenceLengths, queries: Tensor, keys: Tensor
    ) -> Tensor:
        """Mix (batch * heads, channels, positions)."""
        counts = lengths.tensor.clamp(min=1)[:, None, None]
        at = torch.arange(1, values.size(2) + 1, device=values.device, dtype=values.dtype)
        angles = at * (math.pi / 2) / counts
        # cos(a - b) = sin a sin b + cos a cos b
        turns = torch.cat([angles.sin(), angles.cos()], dim=1).unsqueeze(2)
        queries, keys = ((x.relu().unsqueeze(1) * turns).flatten(1, 2) for x in (queries, keys))
        return mix_features(queries, keys, values, least=SMALLEST_TOTAL)
