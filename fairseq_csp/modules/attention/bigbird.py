"""BigBird's pattern (arXiv 2007.14062): a window, global positions and random blocks."""

from dataclasses import dataclass

from fairseq_csp.modules.attention import option, register_attention
from fairseq_csp.modules.attention._pattern import PatternAttention, check_pattern


@dataclass
class BigbirdOptions:
    """The function's options.

    Raises:
        UserError: the window is below 1, or another number is negative.
    """

    window: int = option(64, "how far a query sees, in both directions")
    global_: int = option(2, "so many first positions see all and are seen by all")
    random: int = option(3, "blocks of window positions drawn for each such block of queries")

    def __post_init__(self) -> None:
        check_pattern("bigbird", self)


@register_attention("bigbird", options=BigbirdOptions)
class BigbirdAttention(PatternAttention):
    """Softmax over the keys near a query, global keys and random blocks."""
