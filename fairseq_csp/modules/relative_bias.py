"""Biases of attention scores by relative position, under their published parameter names."""

import math

import torch
from torch import Tensor, nn

from fairseq_csp.errors import UserError


class SimpleRelativeBias(nn.Module):
    """One learnt number for each distance between query and key (as in T5, arXiv 1910.10683)."""

    def __init__(self, max_positions: int) -> None:
        super().__init__()
        self.max_positions = max_positions
        self.rel_pos_bias = nn.Parameter(torch.empty(2 * max_positions - 1))
        nn.init.normal_(self.rel_pos_bias, std=0.02)

    def forward(self, positions: int, first: int = 0, count: int | None = None) -> Tensor:
        """Return (count, positions): entry [i, j] is for query first + i and key j.

        Raises:
            UserError: there are more positions than distances were learnt for.
        """
        check_reach(positions, self.max_positions, "the relative position bias")
        count = positions if count is None else count
        return by_distance(self.rel_pos_bias, positions, first, count)

    def line(self, positions: int) -> Tensor:
        """Return (2 * positions - 1,): entry positions - 1 + d is for the key d after the query.

        Raises:
            UserError: there are more positions than distances were learnt for.
        """
        check_reach(positions, self.max_positions, "the relative position bias")
        unused = self.max_positions - positions
        return self.rel_pos_bias[unused : unused + 2 * positions - 1]


class RotaryRelativeBias(nn.Module):
    """The inner product of two learnt vectors rotated by their positions (arXiv 2104.09864)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise UserError(f"--z-dim is {dim}; the rotary bias needs an even number")
        self.alpha = nn.Parameter(torch.empty(1, dim))
        self.beta = nn.Parameter(torch.empty(1, dim))
        nn.init.normal_(self.alpha, std=0.02)
        nn.init.normal_(self.beta, std=0.02)
        self.register_load_state_dict_pre_hook(drop_published_marker)

    def rotated(self, positions: int) -> tuple[Tensor, Tensor]:
        """Return alpha and beta at each position: two tensors (positions, dim)."""
        sine, cosine = rotary_angles(positions, self.alpha.size(1), self.alpha.device)
        return rotate(self.alpha, sine, cosine), rotate(self.beta, sine, cosine)

    def forward(self, positions: int, first: int = 0, count: int | None = None) -> Tensor:
        """Return (count, positions): entry [i, j] is for query first + i and key j."""
        alpha, beta = self.rotated(positions)
        last = positions if count is None else first + count
        return (alpha[first:last] @ beta.t()).to(self.alpha.dtype)

    def line(self, positions: int) -> Tensor:
        """Return (2 * positions - 1,): entry positions - 1 + d is for the key d after the query."""
        alpha, beta = self.rotated(positions)
        before, after = (alpha @ beta[0]).flip(0), beta @ alpha[0]
        return torch.cat([before[:-1], after]).to(self.alpha.dtype)


def rotary_angles(positions: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return sine and cosine of the angle of each position and pair of channels.

    Args:
        positions: number of positions.
        dim: channels, an even number.
        device: where to.

    Returns:
        Two tensors (positions, dim / 2), float32: bfloat16 cannot tell neighbours apart.
    """
    half = dim // 2
    numbers = torch.arange(max(positions, half), dtype=torch.float, device=device)
    rates = torch.exp(numbers[:half] * -(math.log(10000) / half))
    angles = torch.outer(numbers[:positions], rates)
    return angles.sin(), angles.cos()


def rotate(vectors: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    """Rotate the first half of the channels against the second (arXiv 2104.09864, section 3).

    Args:
        vectors: (..., positions, dim), any floating dtype.
        sine: (positions, dim / 2) of :func:`rotary_angles`.
        cosine: the shape of the sine.

    Returns:
        The shape of ``vectors``, float32 or wider.
    """
    wide = torch.promote_types(vectors.dtype, sine.dtype)
    first, second = vectors.to(wide).chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def by_distance(numbers: Tensor, positions: int, first: int, count: int) -> Tensor:
    """Spread one number for each distance over pairs of positions, as a view where it can be.

    Args:
        numbers: (..., 2P - 1): entry P - 1 + d is for the key d after the query.
        positions: number of keys, at most P.
        first: the first query.
        count: number of queries from there, at most P - first.

    Returns:
        (..., count, positions): entry [i, j] is for query first + i and key j.
    """
    # the row of query i begins at P - 1 - i
    last_row = (numbers.size(-1) + 1) // 2 - first - count
    line = numbers[..., last_row : last_row + count + positions - 1]
    return line.unfold(-1, positions, 1).flip(-2)


def check_reach(positions: int, reach: int, what: str) -> None:
    """Check that what was learnt for ``reach`` positions serves a row.

    Raises:
        UserError: the row has more positions.
    """
    if positions > reach:
        raise UserError(
            f"a row has {positions} positions, but {what} reaches only {reach}: raise "
            "--max-positions (or --chunk-size)"
        )


def build_relative_bias(name: str, max_positions: int, dim: int) -> nn.Module:
    """Build a relative position bias.

    Args:
        name: ``simple`` or ``rotary``.
        max_positions: the most positions a row (or a chunk) can have.
        dim: width of queries and keys.

    Raises:
        UserError: the name is unknown.
    """
    if name == "simple":
        return SimpleRelativeBias(max_positions)
    if name == "rotary":
        return RotaryRelativeBias(dim)
    raise UserError(f"--rel-pos-bias is {name!r}; it must be simple or rotary")


def drop_published_marker(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args: object
) -> None:
    """Drop, before loading, a buffer that published modules have only to know their device."""
    state_dict.pop(prefix + "_float_tensor", None)
