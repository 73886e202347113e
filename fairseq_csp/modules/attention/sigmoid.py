"""Sigmoid attention (arXiv 2409.04431)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import option, register_attention
from fairseq_csp.modules.attention._scores import ScoreAttention
from fairseq_csp.modules.lengths import SequenceLengths

BY_LENGTH = "-log n"


@dataclass
class SigmoidOptions:
    """The function's options.

    Raises:
        UserError: the shift is neither a number nor ``-log n``.
    """

    shift: str = option(
        BY_LENGTH, f"what is added to each score: a number, or {BY_LENGTH} for n valid positions"
    )

    def __post_init__(self) -> None:
        self.shift = str(self.shift)
        try:
            fine = self.shift == BY_LENGTH or math.isfinite(float(self.shift))
        except ValueError:
            fine = False
        if not fine:
            raise UserError(
                f"--sigmoid-shift is {self.shift!r}; it must be a number, or {BY_LENGTH!r}"
            )


@register_attention("sigmoid", options=SigmoidOptions)
class SigmoidAttention(ScoreAttention):
    """``sigmoid(q k^T / sqrt(Z) + bias + b) v`` with ``b = -log n``, n the row's valid positions.

    No parameters of its own. The published code takes one b for all rows of a batch.
    """

    of_scores_alone = True

    def scale(self, queries: Tensor, lengths: SequenceLengths) -> float:
        """Return ``1/sqrt(Z)`` for queries (batch, Z, positions)."""
        return queries.size(1) ** -0.5

    def weights(self, scores: Tensor, lengths: SequenceLengths) -> Tensor:
        """Return the sigmoid of each score, 0 for padded keys, in float32 or wider."""
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if self.options.shift == BY_LENGTH:
            scores = scores - lengths.tensor.clamp(min=1).to(scores.dtype).log()[:, None, None]
        else:
            scores = scores + float(self.options.shift)
        return lengths.zero_padding(torch.sigmoid(scores))
