"""CSP as an attention function: values only, linear cost (arXiv 2410.10914)."""

from dataclasses import dataclass

from torch import Tensor

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import (
    AttentionContext,
    AttentionMaps,
    ValueAttention,
    option,
    register_attention,
)
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.ops.csp import (
    FULL,
    ORDERS,
    SHIFTS,
    permutation_matrix,
    permute_channels,
    takes_packed,
)

# entries of all permutation matrices of a layer, 4 GiB while they are made
MOST_ENTRIES = 1 << 29


@dataclass
class CSPOptions:
    """The operator's options.

    Raises:
        UserError: the group size is neither a positive number nor ``full``.
    """

    shift: str = option("exponential", "how far CSP shifts each channel", choices=SHIFTS)
    group_size: str = option("2", f"positions CSP sorts together: a number, or {FULL}")
    order: str = option("shift_sort", "which of CSP's two steps comes first", choices=ORDERS)
    descending: bool = option(False, "CSP sorts from the largest to the smallest")

    def __post_init__(self) -> None:
        group = str(self.group_size)
        if group != FULL and not (group.isdecimal() and int(group) > 0):
            raise UserError(
                f"--csp-group-size is {group!r}; it must be a number of at least 1, or {FULL}"
            )
        self.group_size = group


@register_attention("csp", options=CSPOptions)
class CSPAttention(ValueAttention):
    """Channel-wise sample permutation, see :mod:`fairseq_csp.ops.csp`."""

    graphable = True

    def __init__(self, context: AttentionContext, options: CSPOptions | None = None) -> None:
        super().__init__(context, options)
        group = self.options.group_size
        self.arguments = {
            "num_layers": context.num_layers,
            "shift": self.options.shift,
            "group_size": group if group == FULL else int(group),
            "order": self.options.order,
            "descending": self.options.descending,
        }

    @property
    def packable(self) -> bool:  # type: ignore[override]
        """Whether the kernel sorts groups of this size, which takes rows end to end."""
        return takes_packed(self.arguments["group_size"])

    def forward(self, values: Tensor, lengths: SequenceLengths) -> Tensor:
        """Permute (batch, channels, positions) within each row."""
        return permute_channels(
            values, None if lengths.full else lengths.tensor, layer=self.layer, **self.arguments
        )

    def attention_map(self, values: Tensor, lengths: SequenceLengths) -> AttentionMaps:
        """Return the permutation matrix of each channel.

        Raises:
            UserError: they would take too much memory.
        """
        _, channels, positions = values.shape
        if channels * positions**2 > MOST_ENTRIES:
            raise UserError(
                f"the maps of {channels} channels of {positions:,} positions take too much memory: "
                "choose a shorter input with --longest or --example"
            )
        maps = permutation_matrix(
            values[:1].transpose(1, 2), lengths.host[:1], layer=self.layer, **self.arguments
        )
        return AttentionMaps("channel", maps[0])
