"""Embeddings of symbols and of real-valued pixels."""

import torch
from fairseq.data import Dictionary
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


def source_embedding(dictionary: Dictionary | None, dim: int) -> nn.Module:
    """Return an embedding of symbols, drawn from N(0, 1/dim) with 0 for padding, or of pixels.

    Args:
        dictionary: the symbols; None for pixels.
        dim: width of a vector.
    """
    if dictionary is None:
        return RealNumberEmbedding(dim)
    embedding = nn.Embedding(len(dictionary), dim, padding_idx=dictionary.pad())
    nn.init.normal_(embedding.weight, std=dim**-0.5)
    nn.init.zeros_(embedding.weight.data[dictionary.pad()])
    return embedding
