"""A naive loop over rows and heads, with which entries are compared."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairseq_csp.modules.attention import AttentionContext, QueryKeyAttention, make_attention
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.relative_bias import build_relative_bias

ROWS = (13, 7, 2, 1)


def rows_of(positions: int, widths: list[int], *, rows: int = 1, seed: int = 0) -> list[Tensor]:
    """Random tensors (rows, positions, width) in float64, one a width."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(rows, positions, width, generator=generator, dtype=torch.double)
        for width in widths
    ]


def make(
    name: str, *, value_dim: int, query_dim: int, heads: int = 1, **arguments: Any
) -> QueryKeyAttention:
    """An entry in float64, in evaluation, with random numbers in all its parameters."""
    torch.manual_seed(0)
    known = ("max_positions", "grid", "layer", "num_layers", "dropout", "has_bias")
    where = {key: arguments.pop(key) for key in known if key in arguments}
    context = AttentionContext(value_dim, query_dim, heads, **({"max_positions": 20} | where))
    attention = make_attention(name, context, arguments).double().eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter += torch.randn_like(parameter) * 0.3
    return attention


def assert_equal_to_formula(
    name: str,
    formula: Callable[..., Tensor],
    *,
    bias: str | None = None,
    rows: tuple[int, ...] = ROWS,
    heads: int = 2,
    tolerance: float = 1e-12,
    **arguments: Any,
) -> None:
    """Compare an entry on a padded batch with a formula for one head of one row.

    Args:
        name: the entry.
        formula: called with q (n, Z), k (n, Z), v (n, C), the relative bias (n, n), the entry and
            the index of the head.
        bias: kind of the relative bias that MEGA and FLASH bring; they have one head.
        rows: valid positions of the rows.
        heads: attention heads where there is no relative bias.
        tolerance: how far a number may be off; the rotary bias knows float32 only.
        arguments: of the entry and of its context.
    """
    heads = 1 if bias else heads
    z, c = 4, 3
    where = {"value_dim": heads * c, "query_dim": heads * z, "heads": heads}
    attention = make(name, has_bias=bias is not None, **where, **arguments)
    relative = build_relative_bias(bias, 20, z).double() if bias else None
    positions = max(rows) + 2
    values, queries, keys = rows_of(positions, [heads * c, heads * z, heads * z], rows=len(rows))
    lengths = SequenceLengths(rows, positions, torch.device("cpu"))
    found = attention(*_call(values, lengths, queries, keys, relative))
    square = torch.zeros(positions, positions) if relative is None else relative(positions)
    for row, n in enumerate(rows):
        expected = [
            formula(q, k, v, square[:n, :n], attention, head)
            for head, (q, k, v) in enumerate(
                zip(*(x[row, :n].chunk(heads, dim=1) for x in (queries, keys, values)), strict=True)
            )
        ]
        torch.testing.assert_close(
            found[row, :, :n].t(), torch.cat(expected, dim=1).double(), rtol=0, atol=tolerance
        )


def _call(
    values: Tensor, lengths: SequenceLengths, queries: Tensor, keys: Tensor, bias: Any
) -> tuple[Any, ...]:
    values, queries, keys = (x.transpose(1, 2) for x in (values, queries, keys))
    return values, lengths, queries, keys, bias
