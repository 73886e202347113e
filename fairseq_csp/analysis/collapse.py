"""Rank collapse: how fast the vectors of all positions become alike in a stack of random layers.

Source: the residual norm of "Attention is not all you need: pure attention loses rank doubly
exponentially with depth" (arXiv 2103.03404, section 2); that permutations do not lose it is argued
in arXiv 2410.10914. The layers are this package's own at initialisation: multi-head attention, and
value and output projections around CSP, around its shift alone, or around a random permutation of
each channel, which is here for comparison only. Their biases are set to 0:
they add the same numbers at every position, which makes positions alike whatever mixes them.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fairseq_csp.analysis.output import save
from fairseq_csp.modules.attention import (
    AttentionContext,
    AttentionFunction,
    ValueAttention,
    make_attention,
)
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.transformer_layer import MultiHeadAttention
from fairseq_csp.plots import load_pyplot


class RandomPermutation(ValueAttention):
    """A permutation of each row and channel, drawn anew each time."""

    def forward(self, values: Tensor, lengths: SequenceLengths) -> Tensor:
        """Permute (batch, channels, positions); padding is not told apart."""
        return values.gather(2, torch.rand(values.shape).argsort(2))


HEADS = 4
MIXINGS: dict[str, Callable[[AttentionContext], AttentionFunction]] = {
    "softmax": lambda context: make_attention("softmax", context, {}),
    "random permutation": RandomPermutation,
    "csp": lambda context: make_attention("csp", context, {}),
    "csp without sort": lambda context: make_attention("csp", context, {"group_size": "1"}),
}
STACKS = ("attention only", "with residual", "with residual and layer norm")


def residual_norm(x: Tensor) -> float:
    """Return ``||X - 1 x^T|| / ||X||`` of (positions, channels), with x the mean vector.

    The mean is the vector that makes the Frobenius norm least. 0: all positions are the same.
    """
    return ((x - x.mean(0)).norm() / x.norm()).item()


def stable_rank(x: Tensor) -> float:
    """Return ``||X||_F^2 / ||X||_2^2`` of (positions, channels): 1 where all are parallel."""
    return ((x.norm() / torch.linalg.matrix_norm(x, 2)) ** 2).item()


@torch.no_grad()
def layer_by_layer(
    mixing: str, stack: str, seed: int, positions: int, channels: int, depth: int
) -> list[tuple[float, float]]:
    """Send normally distributed numbers through random layers, in double precision.

    Args:
        mixing: one of ``MIXINGS``.
        stack: one of ``STACKS``: ``mixing(x)``, ``x + mixing(x)``, or the layer norm of that.
        seed: of the input and the weights; the input is the same for all mixings and stacks.
        positions: length of the sequence.
        channels: channels; a multiple of ``HEADS``.
        depth: number of layers.

    Returns:
        Residual norm and stable rank of the input and after each layer.
    """
    torch.manual_seed(seed)
    x = torch.randn(positions, 1, channels, dtype=torch.double)
    lengths = SequenceLengths([positions], positions, x.device)
    measured = [(residual_norm(x[:, 0]), stable_rank(x[:, 0]))]
    for number in range(depth):
        context = AttentionContext(
            channels, query_dim=channels, heads=HEADS, layer=number, num_layers=depth
        )
        layer = MultiHeadAttention(channels, MIXINGS[mixing](context)).double().eval()
        for name, weight in layer.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
        mixed = layer(x, lengths)
        x = mixed if stack == "attention only" else x + mixed
        if stack == "with residual and layer norm":
            x = nn.functional.layer_norm(x, [channels])
        measured.append((residual_norm(x[:, 0]), stable_rank(x[:, 0])))
    return measured


def draw(file: Path, positions: int, channels: int, depth: int, seeds: int) -> None:
    """Draw residual norm and stable rank against depth, for all mixings and stacks.

    Args:
        file: name of the picture (PNG); the numbers go beside it as CSV.
        positions: length of the sequence.
        channels: channels; a multiple of ``HEADS``.
        depth: number of layers.
        seeds: how many; the band spans all of them, the line is the median.

    Raises:
        UserError: matplotlib is not installed, or the picture cannot be written.
    """
    pyplot = load_pyplot()
    figure, panels = pyplot.subplots(2, 3, figsize=(13, 7.5), sharex=True)
    records = []
    for column, stack in enumerate(STACKS):
        for mixing, style in zip(MIXINGS, ("-", "--", ":", "-."), strict=True):
            # (seeds, depth + 1, 2)
            values = torch.tensor(
                [
                    layer_by_layer(mixing, stack, seed, positions, channels, depth)
                    for seed in range(seeds)
                ]
            )
            records += [
                [stack, mixing, seed, layer, *(f"{value:.6g}" for value in values[seed, layer])]
                for seed in range(seeds)
                for layer in range(depth + 1)
            ]
            for panel, measure in zip(panels[:, column], values.unbind(2), strict=True):
                (line,) = panel.plot(measure.median(0).values, style, linewidth=2, label=mixing)
                low, high = measure.amin(0), measure.amax(0)
                panel.fill_between(range(depth + 1), low, high, color=line.get_color(), alpha=0.2)
        panels[0, column].set(title=stack, yscale="log")
        panels[1, column].set(xlabel="layers", yscale="log")
        for panel in panels[:, column]:
            panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("residual norm ||X - 1x'|| / ||X||")
    panels[1, 0].set_ylabel("stable rank")
    panels[0, 0].legend()
    figure.suptitle(
        f"random weights, {positions} positions, {channels} channels, {seeds} seeds "
        "(line: median, band: all)",
        fontsize="medium",
    )
    head = ["stack", "mixing", "seed", "layers", "residual_norm", "stable_rank"]
    save(figure, head, records, file)
    pyplot.close(figure)
