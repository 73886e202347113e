"""Channel-wise sample permutation (CSP): shift every channel, then sort small groups of positions.

Source: "Towards Better Multi-head Attention via Channel-wise Sample Permutation",
arXiv 2410.10914, sections 3.1 and 3.2. Sorting the whole sequence without a shift is Sliceformer
(arXiv 2310.17683).
"""

from fairseq_csp.ops.csp.function import (
    channel_wise_sample_permutation,
    permutation_matrix,
    permute_channels,
    takes_packed,
)
from fairseq_csp.ops.csp.options import FULL, ORDERS, SHIFTS, check_options, sequence_lengths
from fairseq_csp.ops.csp.shifts import channel_shifts

__all__ = [
    "FULL",
    "ORDERS",
    "SHIFTS",
    "channel_shifts",
    "channel_wise_sample_permutation",
    "check_options",
    "permutation_matrix",
    "permute_channels",
    "sequence_lengths",
    "takes_packed",
]
