"""What MEGA's layer and FLASH's unit share: attention by queries and keys of one origin."""

import torch
from torch import Tensor, nn

from fairseq_csp.modules.attention import AttentionFunction
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.relative_bias import build_relative_bias


class GatedAttention(nn.Module):
    """Base class: ``attention(z * gamma[0] + beta[0], z * gamma[1] + beta[1], values)``.

    Queries and keys are two affine maps of one representation z (arXiv 2202.10447, section 3.2);
    an attention function on values alone has neither, nor a relative position bias. The published
    names of the parameters are flat, and that of the bias comes last: a subclass ends its
    constructor with ``self.rel_pos_bias = self.build_bias(...)``.

    Args:
        attention: what mixes the positions.
        z_dim: query and key channels Z.

    Attributes:
        query_dim: channels of z: Z, or 0 where the attention function has no queries.
    """

    # the projection in which z's rows stand between others
    joint_projection = ""

    def __init__(self, attention: AttentionFunction, z_dim: int) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.query_dim = z_dim if attention.uses_queries else 0
        if self.query_dim:
            self.gamma = nn.Parameter(torch.randn(2, z_dim) * 0.02)
            self.beta = nn.Parameter(torch.zeros(2, z_dim))
        self.attention = attention

    def build_bias(self, name: str, positions: int) -> nn.Module | None:
        """Build the bias of up to ``positions`` positions; None where it is not used."""
        uses_bias = self.attention.uses_bias
        return build_relative_bias(name, positions, self.z_dim) if uses_bias else None

    def attend(self, values: Tensor, shared: Tensor, lengths: SequenceLengths) -> Tensor:
        """Mix values (batch, channels, positions) by z (batch, query_dim, positions)."""
        if lengths.packed and not self.attention.packable:
            return lengths.by_bucket(self.attend, values, shared)
        if not self.query_dim:
            return self.attention(values, lengths)
        queries, keys = (
            torch.addcmul(beta[:, None], shared, gamma[:, None])
            for gamma, beta in zip(self.gamma, self.beta, strict=True)
        )
        return self.attention(values, lengths, queries, keys, self.rel_pos_bias)

    def rows_before_queries(self) -> int:
        """Return how many rows of the joint projection come before those of z."""
        raise NotImplementedError

    def drop_dead_weights(self, state_dict: dict[str, Tensor], prefix: str) -> int:
        """Remove what this layer's attention has no use for from published attention weights.

        Args:
            state_dict: a state dict in which this layer's names start with ``prefix``; changed.
            prefix: with the dot at its end.

        Returns:
            How many numbers were dropped.
        """
        dead = [prefix + name for name in ("gamma", "beta")] if not self.query_dim else []
        if not self.attention.uses_bias:
            dead += [name for name in state_dict if name.startswith(prefix + "rel_pos_bias.")]
        dropped = sum(state_dict.pop(name).numel() for name in dead if name in state_dict)
        if self.query_dim:
            return dropped
        first = self.rows_before_queries()
        own = self.get_submodule(self.joint_projection).out_features
        for kind in ("weight", "bias"):
            name = f"{prefix}{self.joint_projection}.{kind}"
            full = state_dict.get(name)
            if full is not None and full.size(0) == own + self.z_dim:
                state_dict[name] = torch.cat([full[:first], full[first + self.z_dim :]])
                dropped += full.numel() - state_dict[name].numel()
        return dropped
