"""Long convolutions between gates: the Hyena operator (arXiv 2302.10866)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import (
    AttentionContext,
    ValueAttention,
    check_counts,
    option,
    register_attention,
)
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.relative_bias import check_reach
from fairseq_csp.ops.ema import convolve, fast_size

TAPS = 3
# the fastest and the slowest window falls to this in 0.3 and 1.5 times the longest row
TARGET, FAST, SLOW = 1e-2, 0.3, 1.5


@dataclass
class HyenaOptions:
    """The function's options.

    Raises:
        UserError: a number is below its least.
    """

    order: int = option(2, "gates; the long convolutions are one fewer")
    filter_width: int = option(64, "channels inside the network that makes the long filters")
    embedding: int = option(3, "numbers that tell the network a position: the time, sines, cosines")
    two_way: bool = option(True, "look ahead as well, by long filters of its own")

    def __post_init__(self) -> None:
        check_counts("hyena", self, order=2, filter_width=1, embedding=3)
        if self.embedding % 2 == 0:
            raise UserError(f"--hyena-embedding is {self.embedding}; it must be an odd number")


class Sine(nn.Module):
    """``sin(freq * x)`` with a learnt frequency for each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.freq = nn.Parameter(torch.ones(1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (..., dim)."""
        return torch.sin(self.freq * x)


class Positions(nn.Module):
    """What the network is told of each position: parameter ``z``, and the time ``t`` in [0, 1]."""

    t: Tensor

    def __init__(self, dim: int, positions: int) -> None:
        super().__init__()
        bands = (dim - 1) // 2
        time = torch.linspace(0, 1, positions)[None, :, None]
        angle = torch.arange(positions)[None, :, None] * (2 * math.pi / positions)
        angle = angle * torch.linspace(1e-4, bands - 1, bands)
        self.z = nn.Parameter(torch.cat([time, angle.cos(), -angle.sin()], 2))
        self.register_buffer("t", time)


class Window(nn.Module):
    """``exp(-t d)`` with d spread over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        deltas = torch.linspace(math.log(TARGET) / SLOW, math.log(TARGET) / FAST, channels)
        self.register_buffer("deltas", deltas[None, None])

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Multiply x (1, positions, channels) by the window at t (1, positions, 1)."""
        return x * torch.exp(-t * self.deltas.abs())


class LongFilters(nn.Module):
    """A network from the position to the filters' numbers (section 3.3), under published names."""

    def __init__(
        self, channels: int, options: HyenaOptions, positions: int, with_bias: bool
    ) -> None:
        super().__init__()
        width = options.filter_width
        self.bias = nn.Parameter(torch.randn(channels)) if with_bias else None
        self.pos_emb = Positions(options.embedding, positions)
        # the published numbers, of which 3 and 5 are the sine once more
        self.implicit_filter = nn.ModuleDict(
            {
                "0": nn.Linear(options.embedding, width),
                "1": Sine(width),
                "2": nn.Linear(width, width),
                "4": nn.Linear(width, width),
                "6": nn.Linear(width, channels, bias=False),
            }
        )
        self.modulation = Window(channels)

    def forward(self, positions: int) -> Tensor:
        """Return the filters, (channels, positions)."""
        made, network = self.pos_emb.z[:, :positions], self.implicit_filter
        for number in ("0", "2", "4"):
            made = network["1"](network[number](made))
        made = network["6"](made)
        return self.modulation(self.pos_emb.t[:, :positions], made)[0].t()


@register_attention("hyena", options=HyenaOptions)
class HyenaAttention(ValueAttention):
    """``y = W_o (g_0 v)`` with ``v <- K_o * (g_o v)`` for each order (section 3.1).

    Gates and v are short convolutions of one map of the values. ``in_proj`` and ``out_proj`` are
    the maps, ``short_filter`` the short convolutions, ``filter_fn`` the network of the long filters
    K and, two-way, ``filter_back`` that of the filters that look ahead; the short ones are then
    centred. Cost n log n.

    Raises:
        UserError: the most positions of a row are not known.
    """

    def __init__(self, context: AttentionContext, options: HyenaOptions | None = None) -> None:
        super().__init__(context, options)
        if context.max_positions is None:
            raise UserError("hyena needs max_positions, by which its filters measure time")
        channels, order = context.value_dim, self.options.order
        inner = channels * (order + 1)
        self.in_proj = nn.Linear(channels, inner)
        self.out_proj = nn.Linear(channels, channels)
        padding = TAPS // 2 if self.options.two_way else TAPS - 1
        self.short_filter = nn.Conv1d(inner, inner, TAPS, padding=padding, groups=inner)
        long = channels * (order - 1)
        sizes = long, self.options, context.max_positions
        self.filter_fn = LongFilters(*sizes, with_bias=True)
        self.filter_back = LongFilters(*sizes, with_bias=False) if self.options.two_way else None

    def forward(self, values: Tensor, lengths: SequenceLengths) -> Tensor:
        """Mix (batch, channels, positions).

        Raises:
            UserError: a row has more positions than the filters were made for.
        """
        positions = values.size(2)
        check_reach(positions, self.reach, "hyena")
        if positions == 0:
            return values
        x = lengths.zero_padding(values).transpose(1, 2).to(self.in_proj.weight.dtype)
        x = lengths.zero_padding(self.in_proj(x).transpose(1, 2))
        x = lengths.zero_padding(self.short_filter(x)[..., :positions])
        *gates, mixed = x.split(self.context.value_dim, 1)
        with torch.autocast(values.device.type, enabled=False):
            circles = self._circles(positions).split(self.context.value_dim)
        for gate, circle in zip(gates[:0:-1], circles, strict=True):
            mixed = lengths.zero_padding(convolve(mixed * gate, circle))
        mixed = self.out_proj((mixed * gates[0]).transpose(1, 2)).transpose(1, 2)
        return lengths.zero_padding(mixed).to(values.dtype)

    def _circles(self, positions: int) -> Tensor:
        """Return the long filters on circles, (orders * channels, size), float32 or wider."""
        ahead = self.filter_fn(positions)
        size = fast_size(2 * positions, ahead.device)
        own = ahead[:, :1] + self.filter_fn.bias.unsqueeze(1)
        ahead = torch.cat([own, ahead[:, 1:]], 1)
        empty = ahead.new_zeros(len(ahead), size - positions)
        parts = [ahead, empty]
        if self.filter_back is not None:
            # lag -j stands j from the circle's end
            back = self.filter_back(positions)[:, 1:].flip(1)
            parts = [ahead, empty[:, positions - 1 :], back]
        circle = torch.cat(parts, 1)
        return circle.to(torch.promote_types(circle.dtype, torch.float32))
