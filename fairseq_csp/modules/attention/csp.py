"""CSP as an attention function: values only, linear cost (arXiv 2410.10914)."""

from torch import Tensor

from fairseq_csp.modules.attention import (
    AttentionFunction,
    AttentionOptions,
    register_attention,
)
from fairseq_csp.modules.rows import Rows
from fairseq_csp.ops.csp import check_options, permute_channels


@register_attention("csp")
class CSPAttention(AttentionFunction):
    """Channel-wise sample permutation, see :mod:`fairseq_csp.ops.csp`."""

    def __init__(self, options: AttentionOptions) -> None:
        super().__init__(options)
        check_options(options.csp_shift, options.csp_group_size, options.csp_order)

    def forward(self, values: Tensor, rows: Rows) -> Tensor:
        """Permute (batch, channels, positions) within each row."""
        return permute_channels(
            values,
            rows.host,
            layer=self.options.layer,
            num_layers=self.options.num_layers,
            shift=self.options.csp_shift,
            group_size=self.options.csp_group_size,
            order=self.options.csp_order,
            descending=self.options.csp_descending,
        )
