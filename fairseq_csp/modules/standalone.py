"""Attention functions as plain modules, for models that have nothing to do with fairseq."""

import dataclasses
import inspect
from typing import Any

from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import (
    AttentionContext,
    AttentionFunction,
    CarriedAttention,
    HeadAttention,
    attention_class,
    read_options,
)
from fairseq_csp.modules.lengths import SequenceLengths


def build_attention(
    name: str,
    *,
    value_dim: int,
    query_dim: int | None = None,
    heads: int = 1,
    max_positions: int | None = None,
    grid: tuple[int, int] | None = None,
    layer: int = 0,
    num_layers: int = 1,
    dropout: float = 0.0,
    carried: bool = False,
    **options: Any,
) -> nn.Module:
    """Build a registered attention function as a module of its own.

    The module is called with ``(values, lengths=None, queries=None, keys=None)``, or with
    ``(x, lengths=None)`` where the function replaces a whole multi-head layer: values, queries and
    keys of shape (batch, positions, heads * channels), lengths (batch,) the valid positions at the
    start of each row (all of them when None). It returns the shape and dtype of the values, with 0
    at padded positions. ``help(module)`` tells what the function computes and its options.

    Args:
        name: the name of the function, as for ``--attention``.
        value_dim: channels of the values, all heads together.
        query_dim: channels of the queries and of the keys, all heads together; those of the values
            when None.
        heads: attention heads, which divide the channels.
        max_positions: most positions of a row; some functions need it for their parameters.
        grid: rows and columns of the image whose pixels or patches the positions are.
        layer: index of the layer, from 0; some functions differ from layer to layer.
        num_layers: number of layers.
        dropout: probability of dropping an attention weight, in training.
        carried: build the form that replaces a multi-head layer and carries a second stream from
            layer to layer (luna has one): called with ``(x, lengths=None, stream=None)``, stream
            (batch, vectors, channels), it returns what ``x`` becomes and what is added to the
            stream. Without a stream the first layer begins with its own.
        **options: those of the function, by name.

    Raises:
        UserError: there is no such function or option, or a value is out of its range.
    """
    cls = attention_class(name)
    query_dim = value_dim if query_dim is None else query_dim
    for what, count in (
        ("value_dim", value_dim),
        ("query_dim", query_dim),
        ("heads", heads),
        ("num_layers", num_layers),
    ):
        if count < 1:
            raise UserError(f"{what} is {count}; it must be at least 1")
    if cls.uses_heads and (value_dim % heads or query_dim % heads):
        raise UserError(f"{heads} heads do not divide {value_dim} and {query_dim} channels")
    if not 0 <= layer < num_layers:
        raise UserError(f"layer is {layer}; it must be at least 0 and below num_layers")
    if carried:
        if cls.carried is None:
            raise UserError(f"{name} has no form that carries a second stream")
        cls = cls.carried
    context = AttentionContext(
        value_dim=value_dim,
        query_dim=query_dim if cls.uses_queries else 0,
        heads=heads,
        max_positions=max_positions,
        grid=grid,
        layer=layer,
        num_layers=num_layers,
        dropout=dropout,
    )
    return _make(cls, context, read_options(cls.options_type, name, options))


class _PositionsFirst(AttentionFunction):
    """Turns the layout of a function's tensors, which is (batch, channels, positions)."""

    def _lengths(self, x: Tensor, lengths: Tensor | None) -> SequenceLengths:
        self.start_batch()
        if x.dim() != 3 or x.size(2) != self.context.value_dim:
            raise ValueError(
                f"{self.name} takes (batch, positions, {self.context.value_dim}), got "
                f"{tuple(x.shape)}"
            )
        return SequenceLengths.of(lengths, x.size(0), x.size(1), x.device)

    def _out(self, mixed: Tensor, lengths: SequenceLengths) -> Tensor:
        return lengths.zero_padding(mixed).transpose(1, 2)

    def __reduce__(self) -> tuple:
        cls = attention_class(self.name)
        if isinstance(self, CarriedAttention) and cls.carried:
            cls = cls.carried
        return _make, (cls, self.context, self.options), self.__dict__


class _OnValues(_PositionsFirst):
    def forward(
        self,
        values: Tensor,
        lengths: Tensor | None = None,
        queries: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """Mix (batch, positions, channels)."""
        valid = self._lengths(values, lengths)
        if not self.uses_queries:
            return self._out(super().forward(values.transpose(1, 2), valid), valid)
        for what, x in (("queries", queries), ("keys", keys)):
            expected = (*values.shape[:2], self.context.query_dim)
            if x is None or x.shape != expected:
                got = None if x is None else tuple(x.shape)
                raise ValueError(f"{self.name} takes {what} of shape {expected}, got {got}")
        turned = (x.transpose(1, 2) for x in (queries, keys))
        return self._out(super().forward(values.transpose(1, 2), valid, *turned), valid)


class _OnHeads(_PositionsFirst):
    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mix (batch, positions, channels)."""
        valid = self._lengths(x, lengths)
        return self._out(super().forward(x.transpose(1, 2), valid), valid)


class _OnStream(_PositionsFirst):
    def forward(
        self, x: Tensor, lengths: Tensor | None = None, stream: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mix (batch, positions, channels); return what is added to the stream too."""
        valid = self._lengths(x, lengths)
        stream = self.start(len(x)) if stream is None else stream
        mixed, update = super().forward(x.transpose(1, 2), valid, stream)
        return self._out(mixed, valid), update


def _make(cls: type[AttentionFunction], context: AttentionContext, options: Any) -> nn.Module:
    layout: type[AttentionFunction] = _OnValues
    if issubclass(cls, HeadAttention | CarriedAttention):
        layout = _OnHeads if issubclass(cls, HeadAttention) else _OnStream
    text = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Options:", *_option_lines(cls)])
    return type(cls.__name__, (layout, cls), {"__doc__": text})(context, options)


def _option_lines(cls: type[AttentionFunction]) -> list[str]:
    lines = []
    for item in dataclasses.fields(cls.options_type):
        choices = item.metadata.get("choices") or ()
        values = f"{', '.join(choices)}; " if choices else ""
        name, text = item.name.rstrip("_"), item.metadata["help"]
        lines.append(f"    {name}: {text} ({values}default: {item.default})")
    return lines or ["    none"]
