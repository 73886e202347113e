"""Heads for near and for far: HiLo attention (arXiv 2205.13213)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import (
    AttentionContext,
    HeadAttention,
    check_counts,
    option,
    register_attention,
)
from fairseq_csp.modules.attention._windows import Windows, attend, check_grid, equal_windows, tiles
from fairseq_csp.modules.lengths import SequenceLengths


@dataclass
class HiLoOptions:
    """The function's options.

    Raises:
        UserError: the window is below 1, or the share is not between 0 and 1.
    """

    window: int = option(2, "side of a window of an image, or positions of a window of text")
    alpha: float = option(0.5, "share of the heads that attend to the means of windows")

    def __post_init__(self) -> None:
        check_counts("hilo", self, window=1)
        if not 0 <= self.alpha <= 1:
            raise UserError(f"--hilo-alpha is {self.alpha}; it must be between 0 and 1")


@register_attention("hilo", options=HiLoOptions)
class HiLoAttention(HeadAttention):
    """Some heads attend inside windows, the others from each position to the windows' means.

    ``int(alpha * heads)`` heads are of the second kind (section 3.1). Maps with biases: ``h_qkv``
    and ``h_proj`` of the first kind, ``l_q``, ``l_kv`` and ``l_proj`` of the second; the outputs
    stand one after the other. Text is divided into windows from the row's start, the last one
    shorter.
    Cost n (s^2 + n / s^2) on images, n (s + n / s) on text.

    Raises:
        UserError: the window does not divide the image.
    """

    uses_dropout = False

    def __init__(self, context: AttentionContext, options: HiLoOptions | None = None) -> None:
        super().__init__(context, options)
        dim, size = context.value_dim, self.options.window
        self.low = int(context.heads * self.options.alpha)
        self.head_dim = dim // context.heads
        if context.grid and (context.grid[0] % size or context.grid[1] % size):
            rows, columns = context.grid
            raise UserError(
                f"--hilo-window {size} does not divide the image of {rows} x {columns} positions"
            )
        near, far = ((context.heads - self.low) * self.head_dim, self.low * self.head_dim)
        if far:
            self.l_q = nn.Linear(dim, far)
            self.l_kv = nn.Linear(dim, 2 * far)
            self.l_proj = nn.Linear(far, far)
        if near:
            self.h_qkv = nn.Linear(dim, 3 * near)
            self.h_proj = nn.Linear(near, near)

    def forward(self, x: Tensor, lengths: SequenceLengths) -> Tensor:
        """Mix the positions of (batch, D, positions)."""
        check_grid(self.context, x.size(2))
        x = lengths.zero_padding(x)
        windows = self._windows(lengths)
        mixed = []
        if self.low < self.context.heads:
            mixed.append(self._near(x, windows))
        if self.low:
            mixed.append(self._far(x, windows))
        return lengths.zero_padding(torch.cat(mixed, 1))

    def _windows(self, lengths: SequenceLengths) -> Windows:
        size = self.options.window
        if self.context.grid:
            return tiles(self.context.grid, (size, size), lengths.device)
        return equal_windows(lengths, size)

    def _near(self, x: Tensor, windows: Windows) -> Tensor:
        """Attend inside each window."""
        joined = windows.gather(self._turned(_map(self.h_qkv, x), 3))
        # (batch, heads, windows, width, size)
        queries, keys, values = (
            part.unflatten(1, (-1, self.head_dim)).transpose(2, 3) for part in joined.chunk(3, 1)
        )
        mask = windows.mask[:, None, :, None]
        mixed = attend(queries, keys, values, mask, self.head_dim**-0.5)
        return _map(self.h_proj, windows.scatter(mixed.transpose(2, 3).flatten(1, 2)))

    def _turned(self, x: Tensor, parts: int) -> Tensor:
        """Rotate all but the last of (batch, parts * channels, positions), the values."""
        if not self.context.rotary:
            return x
        heads = x.unflatten(1, (-1, self.head_dim))
        count = heads.size(1) * (parts - 1) // parts
        return torch.cat([self.turn(heads[:, :count]), heads[:, count:]], 1).flatten(1, 2)

    def _far(self, x: Tensor, windows: Windows) -> Tensor:
        """Attend from each position to the means of the windows."""
        queries = self.turn(_map(self.l_q, x).unflatten(1, (-1, self.head_dim)))
        if self.context.rotary:
            # the means of what is rotated; without the rotation the map of the mean is the same
            joined = windows.mean(self._turned(_map(self.l_kv, x), 2))
        else:
            joined = _map(self.l_kv, windows.mean(x))
        keys, values = (part.unflatten(1, (-1, self.head_dim)) for part in joined.chunk(2, 1))
        mask = windows.mask.any(2)[:, None, None]
        mixed = attend(queries, keys, values, mask, self.head_dim**-0.5)
        return _map(self.l_proj, mixed.flatten(1, 2))


def _map(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear map to the channels of (batch, channels, positions)."""
    return layer(x.transpose(1, 2)).transpose(1, 2)
