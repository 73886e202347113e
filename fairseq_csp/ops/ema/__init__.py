"""Multi-dimensional damped exponential moving average, in both directions.

Source: "Mega: Moving Average Equipped Gated Attention", arXiv 2209.10655, section 3.1.
"""

from fairseq_csp.ops.ema.convolution import circular_kernel, convolve, fast_size
from fairseq_csp.ops.ema.exponentials import damped_rotations
from fairseq_csp.ops.ema.kernel import ema_kernel
from fairseq_csp.ops.ema.naive import ema_kernel_naive, moving_average_naive
from fairseq_csp.ops.ema.recurrence import recurrent_average, takes_recurrence

__all__ = [
    "circular_kernel",
    "convolve",
    "damped_rotations",
    "ema_kernel",
    "ema_kernel_naive",
    "fast_size",
    "moving_average_naive",
    "recurrent_average",
    "takes_recurrence",
]
