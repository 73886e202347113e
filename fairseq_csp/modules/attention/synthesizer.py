"""Attention whose weights do not compare positions: Synthesizer (arXiv 2005.00743)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_csp.modules.attention import (
    AttentionContext,
    ValueAttention,
    option,
    register_attention,
)
from fairseq_csp.modules.attention._scores import softmax_of_valid
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.relative_bias import check_reach
from fairseq_csp.ops.dropout import dropout


@dataclass
class SynthesizerOptions:
    """The function's options."""

    kind: str = option(
        "dense",
        "scores from each position's own values (dense), or learnt for each pair (random)",
        choices=("dense", "random"),
    )


@register_attention("synthesizer", options=SynthesizerOptions)
class SynthesizerAttention(ValueAttention):
    """``softmax(R) v`` with scores R that no product of positions makes (section 3).

    Dense: row i of R is the first n of the P numbers ``W_2 relu(W_1 v_i)``; ``hidden`` is W_1
    (channels to channels) and ``score`` W_2 (channels to P), both with bias. Random: ``score``
    (P, P), of which the upper left (n, n) is R. Heads play no part. Cost n^2.

    Raises:
        UserError: the most positions of a row are not known.
    """

    uses_dropout = True

    def __init__(
        self, context: AttentionContext, options: SynthesizerOptions | None = None
    ) -> None:
        super().__init__(context, options)
        reach, channels = self.reach, context.value_dim
        if self.options.kind == "dense":
            self.hidden = nn.Linear(channels, channels)
            self.score: nn.Linear | nn.Parameter = nn.Linear(channels, reach)
            for layer in (self.hidden, self.score):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        else:
            self.score = nn.Parameter(torch.randn(reach, reach) * 0.02)

    def forward(self, values: Tensor, lengths: SequenceLengths) -> Tensor:
        """Mix (batch, channels, positions).

        Raises:
            UserError: a row has more positions than scores were learnt for.
        """
        check_reach(values.size(2), self.reach, "the synthesizer")
        dtype = torch.promote_types(values.dtype, torch.float32)
        with torch.autocast(values.device.type, enabled=False):
            wide = lengths.zero_padding(values).to(dtype)
            weights = softmax_of_valid(self._scores(wide), lengths)
            weights = dropout(weights, self.context.dropout, self.training)
            return torch.bmm(wide, weights.transpose(1, 2)).to(values.dtype)

    def _scores(self, values: Tensor) -> Tensor:
        """Return (batch, positions, positions) of values (batch, channels, positions)."""
        positions, dtype = values.size(2), values.dtype
        if isinstance(self.score, Tensor):
            scores = self.score[:positions, :positions].to(dtype)
            return scores.expand(len(values), -1, -1)
        hidden = F.linear(
            values.transpose(1, 2), self.hidden.weight.to(dtype), self.hidden.bias.to(dtype)
        )
        # of the P scores of a position the first n
        weight, bias = self.score.weight[:positions], self.score.bias[:positions]
        return F.linear(hidden.relu(), weight.to(dtype), bias.to(dtype))
