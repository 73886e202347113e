"""Linear attention with ``elu(x) + 1`` (arXiv 2006.16236)."""

import torch.nn.functional as F
from torch import Tensor

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
        keys = lengths.zero_padding(F.elu(keys).add_(1))
        mixed, total = mix_features(F.elu(queries).add_(1), keys, values)
        return mixed * (total + EPS).reciprocal()
