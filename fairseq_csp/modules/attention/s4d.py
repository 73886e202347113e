"""S4D-Lin (arXiv 2206.11893): a diagonal state space model for each channel."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import (
    AttentionContext,
    ValueAttention,
    option,
    register_attention,
)
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.ops.ema import circular_kernel, convolve, damped_rotations, fast_size

STEPS = (1e-3, 1e-1)


@dataclass
class S4DOptions:
    """Options of the state space model.

    Raises:
        UserError: the states of a channel are not a positive even number, or the learning rate is
            negative.
    """

    state: int = option(64, "real numbers in the state of a channel of S4D, half of them complex")
    two_way: bool = option(True, "S4D looks ahead as well as back")
    lr: float | None = option(
        None,
        "highest learning rate of S4D's steps and poles, which then have no weight decay "
        "(published: at most 0.001; default: as all parameters)",
    )

    def __post_init__(self) -> None:
        if self.state < 2 or self.state % 2:
            raise UserError(f"--s4d-state is {self.state}; it must be even and at least 2")
        if self.lr is not None and self.lr < 0:
            raise UserError(f"--s4d-lr is {self.lr}; it must be at least 0")


@register_attention("s4d", options=S4DOptions)
class S4DAttention(ValueAttention):
    """``h <- exp(dt A) h + v_t``, ``y_t = 2 Re(Cb h) + D v_t`` as a convolution of each channel.

    ``A = -exp(log_A_real) + i A_imag``, ``Cb = C (exp(dt A) - 1) / A`` (zero-order hold). A second
    ``C`` looks ahead, from the next position on. Cost ``O(C n (S + log n))``. Parameters of ``C``
    channels: ``C (3 S + 2)``, one way ``C (2 S + 2)``.
    """

    def __init__(self, context: AttentionContext, options: S4DOptions | None = None) -> None:
        super().__init__(context, options)
        channels, states = context.value_dim, self.options.state // 2
        directions = 2 if self.options.two_way else 1
        low, high = map(math.log, STEPS)
        self.log_dt = nn.Parameter(torch.rand(channels) * (high - low) + low)
        self.log_A_real = nn.Parameter(torch.full((channels, states), math.log(0.5)))
        frequencies = math.pi * torch.arange(states, dtype=torch.get_default_dtype())
        self.A_imag = nn.Parameter(frequencies.repeat(channels, 1))
        self.C = nn.Parameter(torch.randn(directions, channels, states, 2))
        self.D = nn.Parameter(torch.randn(channels))
        if self.options.lr is not None:
            for parameter in (self.log_dt, self.log_A_real, self.A_imag):
                parameter.optim_overrides = {"lr": self.options.lr, "weight_decay": 0.0}

    def forward(self, values: Tensor, lengths: SequenceLengths) -> Tensor:
        """Convolve (batch, channels, positions) in float32 or wider."""
        if values.size(2) == 0:
            return values
        with torch.autocast(values.device.type, enabled=False):
            circle = self._circle(values.size(2))
        return convolve(lengths.zero_padding(values), circle)

    def _circle(self, positions: int) -> Tensor:
        """Return both kernels on one circle, (channels, size)."""
        kernel = self.kernel(positions)
        skip = self.D.to(kernel.dtype)
        if len(kernel) == 1:
            back = torch.cat([kernel[0, :, :1] + skip[:, None], kernel[0, :, 1:]], dim=1)
            size = fast_size(2 * positions, kernel.device)
            return nn.functional.pad(back, (0, size - positions))
        back, ahead = kernel
        # the kernel that looks ahead begins one position on
        ahead = nn.functional.pad(ahead[:, :-1], (1, 0))
        return circular_kernel(torch.cat([back, ahead]), skip, positions)

    def kernel(self, lags: int) -> Tensor:
        """Return the kernel of each direction, (directions, channels, lags), float32 or wider."""
        wide = torch.promote_types(self.C.dtype, torch.float32)
        real, imaginary = -self.log_A_real.double().exp(), self.A_imag.double()
        step = self.log_dt.double().exp()[:, None]
        decay, turn = step * real, step * imaginary
        # exp(x) - 1 without loss of digits near 0
        growth = torch.complex(
            torch.expm1(decay) * turn.cos() - 2 * (turn / 2).sin() ** 2,
            decay.exp() * turn.sin(),
        )
        weight = torch.view_as_complex(self.C.double()) * growth / torch.complex(real, imaginary)
        return damped_rotations(2 * weight, torch.complex(decay, turn), lags, wide)
