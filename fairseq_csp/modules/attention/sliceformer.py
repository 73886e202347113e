"""Sliceformer (arXiv 2310.17683): every channel sorted, linear-logarithmic cost."""

from torch import Tensor

from fairseq_csp.modules.attention import ValueAttention, register_attention
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.ops.csp import FULL, permute_channels


@register_attention("sliceformer")
class SliceformerAttention(ValueAttention):
    """Sort every channel over the row's own positions, ascending.

    That is ``csp`` with the whole row as one group and no shift, under the name of its paper. It
    has no parameters.
    """

    refuses = ("csp",)

    def forward(self, values: Tensor, lengths: SequenceLengths) -> Tensor:
        """Sort (batch, channels, positions) within each row; the gradient follows its value."""
        return permute_channels(
            values,
            None if lengths.full else lengths.tensor,
            layer=self.layer,
            num_layers=self.context.num_layers,
            shift="none",
            group_size=FULL,
            order="shift_sort",
            descending=False,
        )
