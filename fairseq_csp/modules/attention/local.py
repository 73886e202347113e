"""LRA's local attention (arXiv 2011.04006): each query sees the keys near it."""

from dataclasses import dataclass

from fairseq_csp.modules.attention import option, register_attention
from fairseq_csp.modules.attention._pattern import PatternAttention, check_pattern


@dataclass
class LocalOptions:
    """The function's options.

    Raises:
        UserError: the window is below 1, or another number is negative.
    """

    window: int = option(25, "how far a query sees, in both directions")
    global_: int = option(0, "so many first positions see all and are seen by all")
    random: int = option(0, "blocks of window positions drawn for each such block of queries")

    def __post_init__(self) -> None:
        check_pattern("local", self)


@register_attention("local", options=LocalOptions)
class LocalAttention(PatternAttention):
    """Softmax over the keys near a query, global keys and random blocks."""
