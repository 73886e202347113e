"""Mixture of heads (arXiv 2410.11842): each position weighs its heads and leaves some out."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import AttentionContext, option, register_attention
from fairseq_csp.modules.attention._heads import ProjectedAttention
from fairseq_csp.modules.lengths import SequenceLengths


@dataclass
class MoHOptions:
    """Which heads there are, and the weight of the balance loss.

    Raises:
        UserError: the weight is negative.
    """

    shared: int | None = option(
        None, "heads of moh that every position uses (default: a quarter of the heads)"
    )
    routed: int | None = option(
        None, "of the other heads of moh, those a position uses (default: half of all heads)"
    )
    balance: float = option(0.01, "weight of the loss by which moh uses its heads evenly")

    def __post_init__(self) -> None:
        if self.balance < 0:
            raise UserError(f"--moh-balance is {self.balance}; it must be at least 0")


class _Statistics(dict):
    """By layer: sums over valid positions of the probabilities and choices, and their number.

    They belong to one batch and hold its graph: a copy of a model begins without.
    """

    def __reduce__(self) -> tuple:
        return _Statistics, ()


@register_attention("moh", options=MoHOptions)
class MixtureOfHeads(ProjectedAttention):
    """``W_o concat_h(g_h head_h)`` with the first s heads shared, r of the others for a position.

    ``p = softmax(W_r x)``; of the h - s routed heads the r with the largest p (of equal ones the
    first) have the gates ``r p / sum(p)``; the shared heads have ``s softmax(W_s x)``; both parts
    are weighed by ``2 softmax(W_0 x)``. In training a loss ``(h-s) sum_h mean(p_h) mean(chosen_h)``
    over the valid positions of the batch keeps the heads evenly used. Parameters beyond those of
    multi-head attention: ``D (h - s)``, and with shared heads ``2 D + D s`` (``2 D`` if one).

    Raises:
        UserError: there are not so many heads.
    """

    def __init__(self, context: AttentionContext, options: MoHOptions | None = None) -> None:
        super().__init__(context, options)
        dim, heads = context.value_dim, context.heads
        shared, routed = self.options.shared, self.options.routed
        self.shared = heads // 4 if shared is None else shared
        if not 0 <= self.shared < heads:
            raise UserError(
                f"--moh-shared is {self.shared}; with {heads} heads it must be 0 to {heads - 1}"
            )
        others = heads - self.shared
        self.routed = min(others, max(1, heads // 2)) if routed is None else routed
        if not 1 <= self.routed <= others:
            raise UserError(
                f"--moh-routed is {self.routed}; with {others} heads that are not shared it must "
                f"be 1 to {others}"
            )
        self.build_projections(heads, heads)
        self.wg = nn.Linear(dim, others, bias=False)
        if self.shared:
            self.wg_0 = nn.Linear(dim, 2, bias=False)
        if self.shared > 1:
            self.wg_1 = nn.Linear(dim, self.shared, bias=False)
        self._statistics = _Statistics()

    def forward(self, x: Tensor, lengths: SequenceLengths) -> Tensor:
        """Mix the positions of (batch, D, positions)."""
        x = lengths.zero_padding(x)
        queries, keys, values = (part.flatten(1, 2) for part in self.project(x, lengths))
        heads = self.attend(values, lengths, queries, keys).unflatten(1, (self.queries, -1))
        gates = self.gates(x.transpose(1, 2), lengths).transpose(1, 2).unsqueeze(2)
        return self.merge((heads * gates.to(heads.dtype)).flatten(1, 2), lengths)

    def gates(self, x: Tensor, lengths: SequenceLengths) -> Tensor:
        """Return the gates of x (batch, positions, D), (batch, positions, h), float32 or wider."""
        chances = _softmax(self.wg(x))
        # a stable sort leaves equal ones in order
        best = chances.sort(dim=2, descending=True, stable=True).indices[..., : self.routed]
        chosen = torch.zeros_like(chances).scatter(2, best, 1.0)
        if self.training:
            self._note(chances, chosen, lengths)
        active = chances * chosen
        routed = self.routed * active / active.sum(2, keepdim=True)
        if not self.shared:
            return routed
        parts = 2 * _softmax(self.wg_0(x))
        shared = self.shared * _softmax(self.wg_1(x)) if self.shared > 1 else 1.0
        return torch.cat([parts[..., :1] * shared, parts[..., 1:] * routed], dim=2)

    def _note(self, chances: Tensor, chosen: Tensor, lengths: SequenceLengths) -> None:
        valid = lengths.mask.transpose(1, 2)
        sums = [(x * valid).sum((0, 1)) for x in (chances, chosen)]
        count = sum(lengths.host)
        if self.layer in self._statistics:
            before, earlier = self._statistics[self.layer]
            sums = [old + new for old, new in zip(before, sums, strict=True)]
            count += earlier
        self._statistics[self.layer] = (sums, count)

    def start_batch(self) -> None:
        """Forget the batch before."""
        self._statistics.clear()

    def auxiliary_loss(self) -> Tensor | None:
        """Return the weighted balance loss of the batch, this function's part of the layers' mean.

        Returns:
            A scalar, float32 or wider; None in evaluation.
        """
        losses = [
            len(chances) * (chances * chosen).sum() / count**2
            for (chances, chosen), count in self._statistics.values()
        ]
        return self.options.balance / self.context.num_layers * sum(losses) if losses else None


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(dim=2, dtype=torch.promote_types(scores.dtype, torch.float32))
