"""Doubly stochastic attention by Sinkhorn iterations: Sinkformer (arXiv 2110.11773)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import option, register_attention
from fairseq_csp.modules.attention._scores import ScoreAttention
from fairseq_csp.modules.lengths import SequenceLengths

# a score of no weight; not -inf, since a chunk may have no valid position at all
NOTHING = -1e30


@dataclass
class SinkformerOptions:
    """The function's options.

    Raises:
        UserError: the number of iterations is not odd.
    """

    iterations: int = option(3, "normalisations over keys and queries in turn; an odd number")

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.iterations % 2 == 0:
            raise UserError(
                f"--sinkformer-iterations is {self.iterations}; it must be an odd number, so that "
                "the last one is over the keys"
            )


@register_attention("sinkformer", options=SinkformerOptions)
class SinkformerAttention(ScoreAttention):
    """Scores as softmax attention has them, normalised over keys and queries alternately.

    One iteration is softmax; with more the weights of each key tend to sum to 1, too (section 3).
    All scores of a row are needed at once, at a cost of n^2 an iteration.
    """

    blocks_of_queries = False

    def scale(self, queries: Tensor, lengths: SequenceLengths) -> float:
        """Return ``1/sqrt(Z)`` for queries (batch, Z, positions)."""
        return queries.size(1) ** -0.5

    def weights(self, scores: Tensor, lengths: SequenceLengths) -> Tensor:
        """Return the weights of the valid keys, (batch, queries, keys) in float32 or wider."""
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        padded = None if lengths.full else ~lengths.mask
        for iteration in range(self.options.iterations):
            over_keys = iteration % 2 == 0
            counted = scores
            if padded is not None:
                counted = scores.masked_fill(padded if over_keys else padded.mT, NOTHING)
            scores = scores - counted.logsumexp(2 if over_keys else 1, keepdim=True)
        if padded is not None:
            # before exp, which could overflow there
            scores = scores.masked_fill(padded | padded.mT, NOTHING)
        return scores.exp()
