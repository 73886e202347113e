"""Luna (arXiv 2106.01540): attention through a short packed sequence, at linear cost."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fairseq_csp.modules.attention import (
    AttentionContext,
    CarriedAttention,
    QueryKeyAttention,
    check_counts,
    option,
    register_attention,
)
from fairseq_csp.modules.attention.softmax import SoftmaxAttention
from fairseq_csp.modules.lengths import SequenceLengths


@dataclass
class LunaOptions:
    """Options of the packed sequence.

    Raises:
        UserError: it is empty.
    """

    size: int = option(16, "vectors of Luna's packed sequence")
    untied: bool = option(
        False, "Luna has maps of its own for keys and for values, in the Transformer"
    )

    def __post_init__(self) -> None:
        check_counts("luna", self, size=1)


class CarriedLuna(CarriedAttention):
    """Luna as published: the packed sequence p is a second stream from layer to layer.

    ``c = W_pc x; u = MHA(W_pq p; c, c); e = W_c u; y = W_o MHA(W_q x; e, e)``, and u is added to p.
    The first layer learns the stream's start (l, D), to which sinusoids are added. Parameters of a
    layer: ``5 (D^2 + D)``, untied ``7 (D^2 + D)``; cost ``O(n l)``.
    """

    name = "luna"
    options_type = LunaOptions

    def __init__(self, context: AttentionContext, options: LunaOptions) -> None:
        super().__init__(context, options)
        dim, size = context.value_dim, options.size
        first = ("pk", "pv") if options.untied else ("pc",)
        second = ("k", "v") if options.untied else ("c",)
        self.names = (first * 2)[:2], (second * 2)[:2]
        for name in ("pq", *first, "q", *second):
            setattr(self, f"{name}_proj", _xavier(dim, 1 / math.sqrt(2)))
        self.out_proj = _xavier(dim, 1.0)
        if context.layer == 0:
            self.packed = nn.Parameter(torch.randn(size, dim) * dim**-0.5)
            self.register_buffer("positions", _sinusoids(size, dim), persistent=False)
        self.attend = SoftmaxAttention(context)

    def start(self, batch: int) -> Tensor:
        """Return the stream that goes into the first layer, (batch, l, D)."""
        return (self.packed + self.positions).expand(batch, -1, -1)

    def forward(self, x: Tensor, lengths: SequenceLengths, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Pack (batch, D, positions) into the stream (batch, l, D), and unpack it."""
        x = lengths.zero_padding(x).transpose(1, 2)
        update = self._attend("pq", stream, self.names[0], x, lengths)
        every = SequenceLengths((update.size(1),) * len(x), update.size(1), x.device)
        mixed = self.out_proj(self._attend("q", x, self.names[1], update, every))
        return lengths.zero_padding(mixed.transpose(1, 2)), update

    def _attend(
        self,
        query: str,
        at: Tensor,
        names: tuple[str, str],
        to: Tensor,
        lengths: SequenceLengths,
    ) -> Tensor:
        """Attend from each vector of (batch, a, D) to those of (batch, b, D) that are valid."""
        queries = getattr(self, f"{query}_proj")(at).transpose(1, 2)
        made = {name: getattr(self, f"{name}_proj")(to).transpose(1, 2) for name in names}
        keys, values = (made[name] for name in names)
        values, queries, keys = (self.fold(x) for x in (values, queries, keys))
        # the vectors of the stream have no positions
        queries, keys = (self.turn(queries), keys) if query == "q" else (queries, self.turn(keys))
        lengths = lengths.repeat(self.context.heads)
        mixed = self.attend.mix(values, lengths, queries, keys, None)
        return self.unfold(mixed).transpose(1, 2)


@register_attention("luna", options=LunaOptions)
class LunaAttention(QueryKeyAttention):
    """``y = S(q (a k)^T / sqrt(Z)) (a v)`` with ``a = S(P k^T / sqrt(Z))``, P a learned (l, Z).

    An adaptation for layers that carry no second stream; the Transformer has Luna as published
    (:class:`CarriedLuna`). Parameters: ``l Z``; cost ``O(n l)``.
    """

    carried = CarriedLuna

    def __init__(self, context: AttentionContext, options: LunaOptions | None = None) -> None:
        super().__init__(context, options)
        width = context.query_dim
        self.packed = nn.Parameter(torch.randn(self.options.size, width) * width**-0.5)
        self.attend = SoftmaxAttention(context)

    def mix(
        self,
        values: Tensor,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: nn.Module | None,
    ) -> Tensor:
        """Mix (batch * heads, channels, positions), padding 0."""
        width, heads = queries.size(1), self.context.heads
        packed = self.packed.t().unflatten(0, (heads, -1)).to(keys.dtype)
        packed = packed.repeat(len(keys) // heads, 1, 1)
        # one product sums keys and values by the same weights
        both = torch.cat([keys, values.to(keys.dtype)], dim=1)
        keys, summaries = self.attend.mix(both, lengths, packed, keys, None).split(
            (width, values.size(1)), dim=1
        )
        size = self.options.size
        every = SequenceLengths((size,) * len(keys), size, keys.device)
        return self.attend.mix(summaries, every, queries.to(keys.dtype), keys, None)


def _xavier(dim: int, gain: float) -> nn.Linear:
    projection = nn.Linear(dim, dim)
    nn.init.xavier_uniform_(projection.weight, gain=gain)
    nn.init.zeros_(projection.bias)
    return projection


def _sinusoids(size: int, dim: int) -> Tensor:
    """Return sines and then cosines of each position (arXiv 1706.03762, 3.5), (size, dim)."""
    half = max(dim // 2, 1)
    rates = torch.exp(torch.arange(half) * (-math.log(10000) / max(half - 1, 1)))
    angles = torch.outer(torch.arange(size, dtype=rates.dtype), rates)
    table = torch.cat([angles.sin(), angles.cos()], dim=1)[:, :dim]
    return nn.functional.pad(table, (0, dim - table.size(1)))
