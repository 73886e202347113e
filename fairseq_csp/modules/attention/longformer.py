"""Longformer's pattern (arXiv 2004.05150): a window and global positions."""

from dataclasses import dataclass

from fairseq_csp.modules.attention import option, register_attention
from fairseq_csp.modules.attention._pattern import PatternAttention, check_pattern


@dataclass
class LongformerOptions:
    """The function's options.

    Raises:
        UserError: the window is below 1, or another number is negative.
    """

    window: int = option(256, "how far a query sees, in both directions")
    global_: int = option(1, "so many first positions see all and are seen by all")
    random: int = option(0, "blocks of window positions drawn for each such block of queries")

    def __post_init__(self) -> None:
        check_pattern("longformer", self)


@register_attention("longformer", options=LongformerOptions)
class LongformerAttention(PatternAttention):
    """Softmax over the keys near a query, global keys and random blocks.

    The published code has a second set of projections for the global positions; here, where the
    function is given queries and keys, they share one.
    """
