"""Embeddings of symbols and of real-valued pixels."""

import torch
from torch import Tensor, nn


class RealNumberEmbedding(nn.Module):
    """``x * weight + bias``: a real number, such as a pixel, as a vector (arXiv 2209.10655)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim))
        self.bias = nn.Parameter(torch.randn(dim) * 0.1)

    def forward(self, numbers: Tensor) -> Tensor:
        """Embed (batch, positions) to (batch, positions, dim)."""
        return numbers.unsqueeze(-1).to(self.weight.dtype) * self.weight + self.bias


class NamedEmbedding(nn.Module):
    """A symbol embedding under the parameter name of the published MEGA code (``embed.weight``)."""

    def __init__(self, embed: nn.Embedding) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed (batch, positions) symbol numbers to (batch, positions, dim)."""
        return self.embed(tokens)


def symbol_embedding(symbols: int, dim: int, padding: int) -> nn.Embedding:
    """Return an embedding drawn from N(0, 1/dim), with 0 for padding.

    Args:
        symbols: size of the dictionary.
        dim: width of a vector.
        padding: the dictionary's number of padding.
    """
    embedding = nn.Embedding(symbols, dim, padding_idx=padding)
    nn.init.normal_(embedding.weight, std=dim**-0.5)
    nn.init.zeros_(embedding.weight.data[padding])
    return embedding
