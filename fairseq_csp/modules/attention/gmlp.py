"""A learnt map over the positions as a gate: gMLP's spatial gating unit (arXiv 2105.08050)."""

import torch
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import (
    AttentionContext,
    NoOptions,
    ValueAttention,
    register_attention,
)
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.norms import LayerNorm
from fairseq_csp.modules.relative_bias import check_reach


@register_attention("gmlp")
class GatingMLP(ValueAttention):
    """``y = v * (W norm(v) + b)`` over the positions (section 2.1).

    Parameters: ``weight`` W (P, P), of which a row of n positions uses the upper left (n, n), at
    first almost 0; ``bias`` b (P), at first 1, so that the unit begins as the identity; ``norm``
    over the channels. The published unit gates one half of the channels with the other; here the
    values are gated with themselves, so that the width stays. Cost n^2.

    Raises:
        UserError: the most positions of a row are not known.
    """

    def __init__(self, context: AttentionContext, options: NoOptions | None = None) -> None:
        super().__init__(context, options)
        if context.max_positions is None:
            raise UserError("gmlp needs max_positions, for which its map is learnt")
        reach = context.max_positions
        self.norm = LayerNorm(context.value_dim)
        self.weight = nn.Parameter(torch.randn(reach, reach) * 1e-3)
        self.bias = nn.Parameter(torch.ones(reach))

    def forward(self, values: Tensor, lengths: SequenceLengths) -> Tensor:
        """Mix (batch, channels, positions).

        Raises:
            UserError: a row has more positions than the map was learnt for.
        """
        positions = values.size(2)
        check_reach(positions, self.reach, "gmlp")
        values = lengths.zero_padding(values)
        # the norm makes its bias of padding
        normed = lengths.zero_padding(self.norm(values))
        weight = self.weight[:positions, :positions].to(normed.dtype)
        gate = normed @ weight.t() + self.bias[:positions].to(normed.dtype)
        return values * gate.to(values.dtype)
