"""Grouped-query attention (arXiv 2305.13245): query heads that share keys and values."""

import logging
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fairseq_csp.modules.attention import AttentionContext, option, register_attention
from fairseq_csp.modules.attention._heads import ProjectedAttention, check_divisor, divisor_up_to

logger = logging.getLogger(__name__)


@dataclass
class GQAOptions:
    """How many key heads there are."""

    # kdgqa and dgqa have the same option
    shared_name: ClassVar[str] = "gqa"

    heads: int | None = option(
        None, "key and value heads, a divisor of the heads (default: half of them)"
    )


class GroupedQueries(ProjectedAttention):
    """What the functions with grouped queries have in common: h query heads, G key heads.

    Raises:
        UserError: the key heads do not divide the heads.
    """

    def __init__(self, context: AttentionContext, options: GQAOptions | None = None) -> None:
        super().__init__(context, options)
        heads, keys = context.heads, self.options.heads
        if keys is None:
            keys = divisor_up_to(heads, heads // 2)
        self.build_projections(heads, check_divisor(self.name, "heads", keys, heads, "heads"))

    def drop_dead_weights(self, state_dict: dict[str, Tensor], prefix: str) -> int:
        """Average the keys and values of published attention over the heads of each group.

        Args:
            state_dict: a state dict in which this module's names start with ``prefix``; changed.
            prefix: with the dot at its end.

        Returns:
            How many numbers there are less.
        """
        before = after = 0
        for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
            full, own = state_dict.get(prefix + name), self.get_parameter(name)
            if full is not None and full.shape == (self.context.value_dim, *own.shape[1:]):
                heads = full.unflatten(0, (self.keys, -1, self.head_dim))
                state_dict[prefix + name] = heads.mean(1).flatten(0, 1)
                before, after = before + full.numel(), after + own.numel()
        if before > after:
            logger.info(
                f"{prefix}: averaged keys and values of {self.queries} heads to {self.keys}"
            )
        return before - after


@register_attention("gqa", options=GQAOptions)
class GroupedQueryAttention(GroupedQueries):
    """Softmax attention of h query heads, h/G after one another to each of G key heads.

    G = h is plain softmax, G = 1 multi-query attention. Parameters:
    ``2 D^2 (1 + G/h) + 2 D (1 + G/h)``; time ``O(n^2)``.
    """
