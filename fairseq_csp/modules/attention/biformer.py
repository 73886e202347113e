"""Attention to a few regions that fit: bi-level routing, BiFormer (arXiv 2303.08810)."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import (
    AttentionContext,
    HeadAttention,
    check_counts,
    option,
    register_attention,
)
from fairseq_csp.modules.attention._windows import Windows, attend, check_grid, segments, tiles
from fairseq_csp.modules.lengths import SequenceLengths


@dataclass
class BiFormerOptions:
    """The function's options.

    Raises:
        UserError: a number is below 1.
    """

    regions: int = option(8, "regions of each side of an image, or of a row of text")
    top: int = option(4, "regions that each region attends to")

    def __post_init__(self) -> None:
        check_counts("biformer", self, regions=1, top=1)


@register_attention("biformer", options=BiFormerOptions)
class BiFormerAttention(HeadAttention):
    """Each region attends to the positions of the regions that fit it best (section 3.2).

    The products of the regions' mean queries and keys, over all heads and without gradient, choose
    ``top`` regions; ties go to the earlier one. Scores are scaled by ``1/sqrt(D)``, as published.
    Maps: ``qkv`` and ``wo``, with biases; ``lepe``, a depthwise convolution of the values, 3 x 3 on
    images and of 3 positions on text, is added before ``wo``. Text is divided into balanced regions
    [floor(t n / S), floor((t + 1) n / S)).

    Raises:
        UserError: the regions do not divide the image.
    """

    uses_dropout = False

    def __init__(self, context: AttentionContext, options: BiFormerOptions | None = None) -> None:
        super().__init__(context, options)
        dim, sides = context.value_dim, self.options.regions
        if context.grid and (context.grid[0] % sides or context.grid[1] % sides):
            rows, columns = context.grid
            raise UserError(
                f"--biformer-regions {sides} does not divide the image of {rows} x {columns} "
                "positions"
            )
        self.qkv = nn.Linear(dim, 3 * dim)
        self.wo = nn.Linear(dim, dim)
        conv = nn.Conv2d if context.grid else nn.Conv1d
        self.lepe = conv(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, lengths: SequenceLengths) -> Tensor:
        """Mix the positions of (batch, D, positions)."""
        check_grid(self.context, x.size(2))
        joined = self.qkv(lengths.zero_padding(x).transpose(1, 2)).transpose(1, 2)
        queries, keys, values = lengths.zero_padding(joined).chunk(3, 1)
        queries, keys = (
            self.turn(x.unflatten(1, (self.context.heads, -1))).flatten(1, 2)
            for x in (queries, keys)
        )
        windows = self._windows(lengths)
        chosen, counts = self._choose(windows, queries.detach(), keys.detach())
        mixed = windows.scatter(self._attend(windows, chosen, counts, queries, keys, values))
        mixed = mixed + self._local(values)
        return lengths.zero_padding(self.wo(mixed.transpose(1, 2)).transpose(1, 2))

    def _windows(self, lengths: SequenceLengths) -> Windows:
        sides = self.options.regions
        if self.context.grid:
            rows, columns = self.context.grid
            return tiles(self.context.grid, (rows // sides, columns // sides), lengths.device)
        bounds = [[t * n // sides for t in range(sides + 1)] for n in lengths.host]
        return lengths.kept(("regions", sides), lambda: segments(lengths, bounds))

    def _choose(self, windows: Windows, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the regions (batch, regions, top) for each region, and which of them count."""
        products = windows.mean(queries).transpose(1, 2) @ windows.mean(keys)
        filled = windows.mask.any(2)[:, None].expand(products.shape)
        products = products.float().masked_fill(~filled, -math.inf)
        # a stable sort, since topk does not say which of equal ones it takes
        order = products.sort(dim=2, descending=True, stable=True).indices
        chosen = order[..., : self.options.top]
        return chosen, filled.gather(2, chosen)

    def _attend(
        self,
        windows: Windows,
        chosen: Tensor,
        counts: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """Return (batch, D, regions, size)."""
        batch, dim = queries.shape[:2]
        heads, regions, top = self.context.heads, chosen.size(1), chosen.size(2)
        index = chosen.flatten(1)
        mask = windows.mask.expand(batch, -1, -1)
        size = mask.size(2)
        mask = mask.gather(1, index[..., None].expand(-1, -1, size))
        mask = mask.unflatten(1, (regions, top)) & counts[..., None]
        taken = []
        for x in (keys, values):
            gathered = windows.gather(x)
            picked = index[:, None, :, None].expand(-1, dim, -1, size)
            gathered = gathered.gather(2, picked).unflatten(2, (regions, top)).flatten(3)
            # (batch, heads, regions, width, keys)
            taken.append(gathered.unflatten(1, (heads, -1)).transpose(2, 3))
        own = windows.gather(queries).unflatten(1, (heads, -1)).transpose(2, 3)
        mask = mask.flatten(2)[:, None, :, None]
        taken_keys, taken_values = taken
        return attend(own, taken_keys, taken_values, mask, dim**-0.5).transpose(2, 3).flatten(1, 2)

    def _local(self, values: Tensor) -> Tensor:
        if self.context.grid is None:
            return self.lepe(values)
        return self.lepe(values.unflatten(2, self.context.grid)).flatten(2)
