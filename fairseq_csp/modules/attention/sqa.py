"""Sparse query attention (arXiv 2510.01817): fewer query heads, so fewer score products."""

from dataclasses import dataclass

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import AttentionContext, option, register_attention
from fairseq_csp.modules.attention._heads import ProjectedAttention, check_divisor, divisor_up_to


@dataclass
class SQAOptions:
    """How many heads there are."""

    queries: int | None = option(None, "query heads of sqa (default: half of the heads)")
    keys: int | None = option(
        None, "key and value heads of sqa, a divisor of its query heads (default: about half)"
    )


@register_attention("sqa", options=SQAOptions)
class SparseQueryAttention(ProjectedAttention):
    """Softmax attention with ``queries`` of h query heads; ``keys`` key heads serve them in turn.

    Query head a has key head ``floor(a keys / queries)``. Parameters:
    ``D^2 (2 queries + 2 keys) / h + D (queries + 2 keys) / h + D``. Cost ``O(n^2 queries / h)``.

    Raises:
        UserError: the query heads are not 1 to h, or the key heads do not divide them.
    """

    def __init__(self, context: AttentionContext, options: SQAOptions | None = None) -> None:
        super().__init__(context, options)
        queries, heads = self.options.queries, context.heads
        if queries is None:
            queries = max(1, heads // 2)
        if not 1 <= queries <= heads:
            raise UserError(f"--sqa-queries is {queries}; it must be from 1 to the {heads} heads")
        keys = self.options.keys
        if keys is None:
            keys = divisor_up_to(queries, heads // 4)
        check_divisor("sqa", "keys", keys, queries, "query heads")
        self.build_projections(queries, keys)
