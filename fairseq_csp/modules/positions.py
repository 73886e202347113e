"""Embeddings of absolute positions, under their published parameter names."""

from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.relative_bias import drop_published_marker


class SinusoidalPositions(nn.Module):
    """Sines and cosines of the position (arXiv 1706.03762, section 3.5).

    fairseq's own module finds positions by comparing the input with the padding symbol, which real
    numbers do not have; its table is used.

    Args:
        max_positions: most positions of a row.
        dim: channels.
        offset: number of the first position in the table.
    """

    table: Tensor

    def __init__(self, max_positions: int, dim: int, offset: int) -> None:
        super().__init__()
        table = SinusoidalPositionalEmbedding.get_embedding(offset + max_positions, dim)
        self.register_buffer("table", table[offset:], persistent=False)
        self.register_load_state_dict_pre_hook(drop_published_marker)

    def forward(self, positions: int) -> Tensor:
        """Return (positions, dim).

        Raises:
            UserError: there are more positions than the table has.
        """
        return _first(self.table, positions)


class LearnedPositions(nn.Embedding):
    """A vector for each position.

    Args:
        max_positions: most positions of a row.
        dim: channels.
        offset: number of the first position in the table.
    """

    def __init__(self, max_positions: int, dim: int, offset: int) -> None:
        super().__init__(offset + max_positions, dim)
        self.offset = offset
        nn.init.normal_(self.weight, std=dim**-0.5)

    def forward(self, positions: int) -> Tensor:  # type: ignore[override]
        """Return (positions, dim).

        Raises:
            UserError: there are more positions than vectors.
        """
        return _first(self.weight[self.offset :], positions)


def _first(table: Tensor, positions: int) -> Tensor:
    if positions > len(table):
        raise UserError(
            f"a row has {positions} positions, but --max-positions is {len(table)}: raise it"
        )
    return table[:positions]
