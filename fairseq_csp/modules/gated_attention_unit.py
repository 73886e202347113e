"""FLASH's gated attention unit ("quad", arXiv 2202.10447), with any attention function."""

import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_csp.modules.attention import AttentionFunction
from fairseq_csp.modules.gated_attention import GatedAttention
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.norms import build_norm
from fairseq_csp.modules.pointwise import linear, linear_split, normal_linear
from fairseq_csp.ops.dropout import dropout


class GatedAttentionUnit(GatedAttention):
    """``W_o (u * attention(v))`` with u, v and z from one projection (section 3.2).

    Args:
        dim: model channels D.
        hidden_dim: gate and value channels H.
        z_dim: query and key channels Z.
        attention: what mixes the positions.
        hidden_dropout: probability of dropping a mixed value.
        relative_bias: ``simple`` or ``rotary``.
        max_positions: most positions of a row.
    """

    joint_projection = "proj"

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        z_dim: int,
        *,
        attention: AttentionFunction,
        hidden_dropout: float,
        relative_bias: str,
        max_positions: int,
    ) -> None:
        super().__init__(attention, z_dim)
        self.sizes = (hidden_dim, hidden_dim, self.query_dim)
        self.hidden_dropout = hidden_dropout
        self.proj = normal_linear(dim, sum(self.sizes))
        self.out_proj = normal_linear(hidden_dim, dim)
        self.rel_pos_bias = self.build_bias(relative_bias, max_positions)

    def forward(self, x: Tensor, lengths: SequenceLengths) -> Tensor:
        """Map (batch, D, positions) to the same shape."""
        gate, values, shared = map(F.silu, linear_split(self.proj, x, self.sizes))
        mixed = dropout(self.attend(values, shared, lengths), self.hidden_dropout, self.training)
        return linear(self.out_proj, gate * mixed)

    def rows_before_queries(self) -> int:
        """Return the channels of gate and values, which come first."""
        return self.sizes[0] + self.sizes[1]


class FlashEncoderLayer(nn.Module):
    """``x + gau(norm(x))``, under the published names."""

    def __init__(self, gau: GatedAttentionUnit, norm_type: str, dim: int, dropout: float) -> None:
        super().__init__()
        self.gau = gau
        self.pre_norm = flash_norm(norm_type, dim)
        self.dropout = dropout

    def forward(self, x: Tensor, lengths: SequenceLengths) -> Tensor:
        """Map (batch, D, positions) to the same shape."""
        return x + dropout(self.gau(self.pre_norm(x), lengths), self.dropout, self.training)


def flash_norm(name: str, dim: int) -> nn.Module:
    """Build a normalisation with the eps that the published FLASH has for it."""
    return build_norm(name, dim, eps=1e-6 if name in ("scalenorm", "rmsnorm") else 1e-5)
