"""Key-driven grouped queries (arXiv 2408.08454): query heads dealt by the norms of the keys."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_csp.modules.attention import AttentionContext, option, register_attention
from fairseq_csp.modules.attention._heads import allocate, check_least, dealt, key_norms
from fairseq_csp.modules.attention.gqa import GQAOptions, GroupedQueries
from fairseq_csp.modules.lengths import SequenceLengths


@dataclass
class KDGQAOptions(GQAOptions):
    """How many key heads there are, and how many query heads each has at least."""

    least: int = option(0, "query heads that each key head has at least")


@register_attention("kdgqa", options=KDGQAOptions)
class KeyDrivenAttention(GroupedQueries):
    """Softmax attention whose query heads go to the G key heads by the norms of their keys.

    For each row: ``N_g`` is the Frobenius norm of a key head over the row's own positions,
    ``u = (N - min)/(max - min)``, and key head g serves ``round(h u_g / sum u)`` query heads, in
    order. The weakest key head often gets none. No gradient passes through the allocation.
    Parameters as in gqa; time ``O(n^2)``.

    Raises:
        UserError: the key heads do not divide the heads, or cannot have as many queries each.
    """

    def __init__(self, context: AttentionContext, options: KDGQAOptions | None = None) -> None:
        super().__init__(context, options)
        check_least(self.name, self.options.least, self.queries, self.keys)

    def serve(
        self, keys: Tensor, values: Tensor, lengths: SequenceLengths
    ) -> tuple[Tensor, Tensor]:
        """Give each query head the keys and values that its row allocates to it."""
        return dealt(self.allocation(keys), self.queries, keys, values)

    @torch.no_grad()
    def allocation(self, keys: Tensor) -> Tensor:
        """Return the query heads of each key head, (batch, G) int64, for keys 0 at padding."""
        norms = key_norms(keys)
        low, high = norms.aminmax(dim=1, keepdim=True)
        spread = high - low
        shares = torch.where(spread > 0, (norms - low) / spread.where(spread > 0, 1), 1.0)
        return allocate(shares, self.queries, self.options.least)
