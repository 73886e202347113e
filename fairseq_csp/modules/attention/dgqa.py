"""Dynamic grouped queries (arXiv 2408.08454): the dealing of query heads follows the training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import AttentionContext, option, register_attention
from fairseq_csp.modules.attention._heads import allocate, check_least, dealt, key_norms
from fairseq_csp.modules.attention.gqa import GroupedQueries
from fairseq_csp.modules.attention.kdgqa import KDGQAOptions
from fairseq_csp.modules.lengths import SequenceLengths

RULES = ("diff", "ema")
# share of the newest norms in rule ema
NEWEST = 0.9


@dataclass
class DGQAOptions(KDGQAOptions):
    """Options of the dealing.

    Raises:
        UserError: the window is not positive.
    """

    window: int = option(1, "updates after which dgqa deals its query heads anew")
    rule: str = option(
        "diff", "dgqa deals by how much the norms changed, or by their average", choices=RULES
    )

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UserError(f"--dgqa-window is {self.window}; it must be at least 1")


@register_attention("dgqa", options=DGQAOptions)
class DynamicAttention(GroupedQueries):
    """Softmax attention whose query heads go to the G key heads as training has dealt them.

    One allocation serves all rows; it begins even. Every ``window`` training updates (told by
    ``after_update``) the norms m of the key heads, averaged over the rows and processes of the last
    update, deal it anew: by ``|cache - m|`` (diff) or by ``0.9 m + 0.1 cache`` (ema); then m is the
    cache. It stays in evaluation. Parameters as in gqa; time ``O(n^2)``.

    Raises:
        UserError: the key heads do not divide the heads, or cannot have as many queries each.
    """

    alloc: Tensor
    cache: Tensor

    def __init__(self, context: AttentionContext, options: DGQAOptions | None = None) -> None:
        super().__init__(context, options)
        check_least(self.name, self.options.least, self.queries, self.keys)
        even = torch.full((self.keys,), self.queries // self.keys)
        self.register_buffer("alloc", even)
        self.register_buffer("cache", torch.zeros(self.keys, dtype=torch.float64))
        # sums of the norms and the number of rows since the last update
        self._seen: Tensor | None = None

    def _apply(self, *arguments: object, **options: object) -> "DynamicAttention":
        # a half-precision model keeps the norms: their changes are small beside them
        super()._apply(*arguments, **options)
        self.cache = self.cache.double()
        return self

    def serve(
        self, keys: Tensor, values: Tensor, lengths: SequenceLengths
    ) -> tuple[Tensor, Tensor]:
        """Give each query head the keys and values allocated to it."""
        if self.training:
            norms = key_norms(keys)
            seen = torch.cat([norms.sum(0), norms.new_full((1,), len(norms))])
            self._seen = seen if self._seen is None else self._seen + seen
        return dealt(self.alloc.expand(len(keys), -1), self.queries, keys, values)

    @torch.no_grad()
    def after_update(self, updates: int) -> None:
        """Deal the query heads anew if it is time."""
        seen, self._seen = self._seen, None
        if updates % self.options.window:
            return
        if seen is None:
            seen = self.cache.new_zeros(self.keys + 1)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(seen)
        # where there was no row all stays as it is; the host does not ask
        any_row, mean = seen[-1] > 0, seen[:-1] / seen[-1]
        if self.options.rule == "diff":
            shares = (self.cache - mean).abs()
        else:
            shares = NEWEST * mean + (1 - NEWEST) * self.cache
        dealt_anew = allocate(shares[None].nan_to_num(), self.queries, self.options.least)[0]
        self.alloc.copy_(torch.where(any_row, dealt_anew, self.alloc))
        self.cache.copy_(torch.where(any_row, mean, self.cache))

    def drop_dead_weights(self, state_dict: dict[str, Tensor], prefix: str) -> int:
        """Average published keys and values, with which the dealing begins even."""
        dropped = super().drop_dead_weights(state_dict, prefix)
        if f"{prefix}k_proj.weight" in state_dict:
            for name in ("alloc", "cache"):
                state_dict.setdefault(prefix + name, self.get_buffer(name).clone())
        return dropped
