"""The direct formulas of every family: for tests to compare and benchmarks to measure.

As a user would write them from the papers and about as the published code does: positions before
channels, one call of ``torch.nn.functional`` for each step, autograd for the backward pass. Nothing
is slowed down, and nothing is taken from the modules but their parameters. Sequences hold no
padding.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_csp.models.config import SharedConfig
from fairseq_csp.models.family import attention_of
from fairseq_csp.models.lra import LRAModel
from fairseq_csp.ops.csp.naive import permute_naive
from fairseq_csp.ops.ema.naive import moving_average_naive

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
}


def scale_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return ``scale * x / sqrt(mean(x^2) + eps)``, the mean over the channels.

    Args:
        x: (batch, positions, channels), any floating dtype.
        scale: (1,) or (channels,), the dtype of ``x``.
        eps: added to the mean square.

    Returns:
        The shape and dtype of ``x``.
    """
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * scale


def simple_bias(weight: Tensor, positions: int) -> Tensor:
    """Return the matrix (positions, positions) whose entry [i, j] is the weight of j - i.

    Args:
        weight: (2P - 1,) weights of the distances from -(P - 1) to P - 1.
        positions: at most P.
    """
    middle = weight.size(0) // 2
    line = weight[middle - positions + 1 : middle + positions]
    rows = F.pad(line, (0, positions)).tile(positions)[:-positions]
    return rows.view(positions, -1)[:, positions - 1 : 2 * positions - 1]


def rotary_bias(alpha: Tensor, beta: Tensor, positions: int) -> Tensor:
    """Return the matrix (positions, positions) of inner products of two rotated vectors.

    Args:
        alpha: (1, channels), rotated by the position of the query.
        beta: (1, channels), rotated by the position of the key.
        positions: how many.
    """
    half = alpha.size(1) // 2
    rates = torch.exp(-torch.arange(half, device=alpha.device) * math.log(10000) / half)
    angles = torch.arange(positions, device=alpha.device)[:, None] * rates
    sine, cosine = angles.sin(), angles.cos()

    def rotate(vector: Tensor) -> Tensor:
        a, b = vector.chunk(2, dim=1)
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=1)

    return rotate(alpha) @ rotate(beta).T


@lru_cache(maxsize=4)
def sinusoids(first: int, positions: int, dim: int, device: torch.device) -> Tensor:
    """Return (positions, dim) float32: sines and cosines of the positions from ``first`` on."""
    half = dim // 2
    rates = torch.exp(-torch.arange(half, device=device) * math.log(10000) / (half - 1))
    angles = torch.arange(first, first + positions, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Weights:
    """The parameters and buffers whose names start with a prefix, by the rest of their names.

    Args:
        tensors: all of them, by their full names.
        prefix: the prefix.
    """

    def __init__(self, tensors: dict[str, Tensor], prefix: str = "") -> None:
        self.tensors = tensors
        self.prefix = prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]

    def inside(self, name: str) -> "Weights":
        """Return those inside a module."""
        return Weights(self.tensors, f"{self.prefix}{name}.")

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Apply a linear map to the last dimension.

        Args:
            name: of the map, without ``.weight``.
            x: (..., inputs), the dtype of the map.

        Returns:
            (..., outputs), the same dtype.
        """
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def embed(self, name: str, source: Tensor) -> Tensor:
        """Embed (batch, positions) symbols or pixels to (batch, positions, channels)."""
        if source.is_floating_point():
            return source.unsqueeze(2) * self[f"{name}.weight"] + self[f"{name}.bias"]
        return F.embedding(source, self[f"{name}.weight"])


class NaiveModel:
    """An LRA model's function by the direct formulas, on the model's own parameters.

    Args:
        model: whose parameters take the gradients; in the mode (training or not) to be imitated.
    """

    def __init__(self, model: LRAModel) -> None:
        self.cfg: SharedConfig = model.cfg
        self.training = model.training
        self.activation = ACTIVATIONS[str(self.cfg.activation_fn)]
        self.weights = Weights(dict(model.named_parameters()) | dict(model.named_buffers()))
        self.encode = {
            "mega": self._mega,
            "flash": self._flash,
            "transformer": self._transformer,
            "lstm": self._lstm,
        }[str(self.cfg.layer_type)]

    def __call__(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        src1_tokens: Tensor | None = None,
        src1_lengths: Tensor | None = None,
    ) -> Tensor:
        """Classify sequences without padding.

        Args:
            src_tokens: (batch, positions) symbols or pixels.
            src_lengths: not needed.
            src1_tokens: the second documents, where there are two.
            src1_lengths: not needed.

        Returns:
            Logits (batch, classes).
        """
        weights = self.weights.inside("encoder.encoder")
        x = self.encode(weights, src_tokens)
        if src1_tokens is not None:
            x = torch.cat([self.encode(weights, src1_tokens), x], dim=1)
        for layer in range(self.cfg.classifier_layers):
            x = F.gelu(self._drop(self.weights.linear(f"classifier.{layer}.0", x)))
        return F.linear(x, self.weights["sentence_projection_layer.weight"])

    def _drop(self, x: Tensor, p: float | None = None) -> Tensor:
        return F.dropout(x, self.cfg.dropout if p is None else p, self.training)

    def _norm(self, weights: Weights, x: Tensor, eps: float) -> Tensor:
        if self.cfg.norm_type == "scalenorm":
            return scale_norm(x, weights["scalar"], eps)
        if self.cfg.norm_type == "rmsnorm":
            return scale_norm(x, weights["weight"], eps)
        if self.cfg.norm_type == "layernorm":
            return _layer_norm(weights, x)
        statistics = (None, None)
        if not self.training:
            statistics = weights["running_mean"], weights["running_var"]
        affine = weights["weight"], weights["bias"]
        x = F.batch_norm(x.transpose(1, 2), *statistics, *affine, self.training, eps=eps)
        return x.transpose(1, 2)

    def _pool(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.cfg.sen_rep_type == "cls" else x.mean(1)

    def _mega(self, weights: Weights, source: Tensor) -> Tensor:
        cfg = self.cfg
        text = not source.is_floating_point()
        x = weights.embed("embed_tokens.embed" if text else "embed_tokens", source)
        if cfg.normalize_embedding:
            x = self._norm(weights.inside("embed_norm.norm"), x, 1e-5)
        x = self._drop(x)
        for layer in range(cfg.encoder_layers):
            inside = weights.inside(f"layers.{layer}")
            x = self._mega_layer(inside.inside("mega_layer"), x, layer)
            if cfg.encoder_ffn_embed_dim > 0:
                x = self._feed_forward(inside.inside("nffn"), x)
        if cfg.encoder_normalize_before:
            x = self._norm(weights.inside("final_norm.norm"), x, 1e-5)
        return self._pool(x)

    def _mega_layer(self, weights: Weights, x: Tensor, layer: int) -> Tensor:
        cfg = self.cfg
        dim, hidden = cfg.encoder_embed_dim, cfg.encoder_hidden_dim
        z_dim = 0 if cfg.attention == "csp" else cfg.z_dim
        norm = weights.inside("norm.norm")
        residual = x
        if cfg.encoder_normalize_before:
            x = self._norm(norm, x, 1e-5)
        values = self.activation(weights.linear("v_proj", x))
        average = self._drop(self._moving_average(weights.inside("move"), x))
        base = weights.linear("mx_proj", average)
        update, shared, direct = base.split([dim, z_dim + hidden, dim], dim=-1)
        update = torch.sigmoid(update)
        shared, reset = F.silu(shared).split([z_dim, hidden], dim=-1)
        values = self._drop(values, cfg.act_dropout)
        mixed = self._attend_in_chunks(weights, values, shared, layer)
        out = self.activation(direct + weights.linear("h_proj", mixed * reset))
        out = torch.addcmul(residual, update, self._drop(out) - residual)
        return out if cfg.encoder_normalize_before else self._norm(norm, out, 1e-5)

    def _feed_forward(self, weights: Weights, x: Tensor) -> Tensor:
        norm = weights.inside("norm.norm")
        residual = x
        if self.cfg.encoder_normalize_before:
            x = self._norm(norm, x, 1e-5)
        x = self._drop(self.activation(weights.linear("fc1", x)), self.cfg.act_dropout)
        x = self._drop(weights.linear("fc2", x)) + residual
        return x if self.cfg.encoder_normalize_before else self._norm(norm, x, 1e-5)

    def _moving_average(self, weights: Weights, x: Tensor) -> Tensor:
        limit = self.cfg.truncation_length or 0
        names = ("delta", "alpha", "beta", "gamma", "omega")
        parameters = [weights[name] for name in names]
        average = moving_average_naive(
            x.transpose(1, 2), *parameters, truncation=limit if limit > 0 else None
        )
        return F.silu(average.transpose(1, 2))

    def _attend_in_chunks(
        self, weights: Weights, values: Tensor, shared: Tensor, layer: int
    ) -> Tensor:
        size = self.cfg.chunk_size
        if size <= 0 or size >= values.size(1):
            return self._attend(weights, values, shared, layer)
        chunks = zip(values.split(size, 1), shared.split(size, 1), strict=True)
        return torch.cat([self._attend(weights, *chunk, layer) for chunk in chunks], dim=1)

    def _attend(self, weights: Weights, values: Tensor, shared: Tensor, layer: int) -> Tensor:
        """Attention of MEGA and FLASH, with queries and keys from one representation."""
        cfg = self.cfg
        name = attention_of(cfg).name
        if name == "csp":
            return self._permute(values, layer)
        queries, keys = (shared.unsqueeze(2) * weights["gamma"] + weights["beta"]).unbind(2)
        positions = values.size(1)
        table = weights.inside("rel_pos_bias")
        if cfg.rel_pos_bias == "simple":
            bias = simple_bias(table["rel_pos_bias"], positions)
        else:
            bias = rotary_bias(table["alpha"], table["beta"], positions)
        if name == "softmax":
            queries = queries / math.sqrt(cfg.z_dim)
            scores = torch.bmm(queries, keys.transpose(1, 2)) + bias
            attention = F.softmax(scores, dim=-1)
        else:
            scores = torch.bmm(queries, keys.transpose(1, 2)) / positions + bias
            attention = F.relu(scores).square() if name == "relu2" else _laplace(scores)
        return torch.bmm(self._drop(attention, cfg.attention_dropout), values)

    def _permute(self, values: Tensor, layer: int) -> Tensor:
        cfg = self.cfg
        group = cfg.csp_group_size
        return permute_naive(
            values,
            layer=layer,
            num_layers=cfg.encoder_layers,
            shift=str(cfg.csp_shift),
            group_size=group if group == "full" else int(group),
            order=str(cfg.csp_order),
            descending=cfg.csp_descending,
        )

    def _flash(self, weights: Weights, source: Tensor) -> Tensor:
        cfg = self.cfg
        hidden, z_dim = cfg.encoder_hidden_dim, 0 if cfg.attention == "csp" else cfg.z_dim
        eps = 1e-6 if cfg.norm_type in ("scalenorm", "rmsnorm") else 1e-5
        x = self._drop(weights.embed("embed_tokens", source))
        for layer in range(cfg.encoder_layers):
            unit = weights.inside(f"layers.{layer}.gau")
            normal = self._norm(weights.inside(f"layers.{layer}.pre_norm"), x, eps)
            base = F.silu(unit.linear("proj", normal))
            gate, values, shared = base.split([hidden, hidden, z_dim], dim=-1)
            mixed = self._drop(self._attend(unit, values, shared, layer), cfg.act_dropout)
            x = x + self._drop(unit.linear("out_proj", gate * mixed))
        return self._pool(self._norm(weights.inside("final_norm"), x, eps))

    def _transformer(self, weights: Weights, source: Tensor) -> Tensor:
        cfg = self.cfg
        dim, positions = cfg.encoder_embed_dim, source.size(1)
        # the padding symbol of a text has number 1
        first = 0 if source.is_floating_point() else 2
        x = weights.embed("embed_tokens", source)
        if cfg.encoder_learned_pos:
            x = x + weights["embed_positions.weight"][first : first + positions]
        else:
            x = x * math.sqrt(dim) + sinusoids(first, positions, dim, x.device)
        if cfg.encoder_normalize_before:
            x = _layer_norm(weights.inside("emb_layer_norm"), x)
        x = self._drop(x)
        for layer in range(cfg.encoder_layers):
            inside = weights.inside(f"layers.{0 if cfg.tie_layer_weights else layer}")
            mixed = self._multihead(inside.inside("self_attn"), x, layer)
            x = _layer_norm(inside.inside("self_attn_layer_norm"), x + self._drop(mixed))
            hidden = self._drop(self.activation(inside.linear("fc1", x)), cfg.act_dropout)
            hidden = self._drop(inside.linear("fc2", hidden))
            x = _layer_norm(inside.inside("final_layer_norm"), x + hidden)
        return self._pool(x)

    def _multihead(self, weights: Weights, x: Tensor, layer: int) -> Tensor:
        cfg = self.cfg
        values = weights.linear("v_proj", x)
        if cfg.attention == "csp":
            return weights.linear("out_proj", self._permute(values, layer))
        heads = cfg.encoder_attention_heads
        queries = weights.linear("q_proj", x) * (cfg.encoder_embed_dim // heads) ** -0.5
        queries, keys, values = (
            part.unflatten(2, (heads, -1)).transpose(1, 2)
            for part in (queries, weights.linear("k_proj", x), values)
        )
        attention = F.softmax(queries @ keys.transpose(2, 3), dim=-1)
        mixed = self._drop(attention, cfg.attention_dropout) @ values
        return weights.linear("out_proj", mixed.transpose(1, 2).flatten(2))

    def _lstm(self, weights: Weights, source: Tensor) -> Tensor:
        cfg = self.cfg
        x = self._drop(weights.embed("embed_tokens", source))
        for layer in range(cfg.encoder_layers):
            if layer:
                x = self._drop(x, cfg.act_dropout)
            forward, last = self._recur(weights, x, f"l{layer}")
            backward, first = self._recur(weights, x.flip(1), f"l{layer}_reverse")
            x = torch.cat([forward, backward.flip(1)], dim=2)
        return torch.cat([last, first], dim=1) if cfg.sen_rep_type == "cls" else x.mean(1)

    def _recur(self, weights: Weights, x: Tensor, suffix: str) -> tuple[Tensor, Tensor]:
        """Return one direction's states (batch, positions, hidden) and the last of them."""
        hidden = cell = x.new_zeros(x.size(0), self.cfg.encoder_ffn_embed_dim)
        states = []
        for vector in x.unbind(1):
            gates = F.linear(
                vector, weights[f"lstm.weight_ih_{suffix}"], weights[f"lstm.bias_ih_{suffix}"]
            ) + F.linear(
                hidden, weights[f"lstm.weight_hh_{suffix}"], weights[f"lstm.bias_hh_{suffix}"]
            )
            enter, forget, new, leave = gates.chunk(4, dim=1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
            hidden = torch.sigmoid(leave) * torch.tanh(cell)
            states.append(hidden)
        return torch.stack(states, dim=1), hidden


def _layer_norm(weights: Weights, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights["weight"], weights["bias"])


def _laplace(scores: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf((scores - 0.707107) / (0.282095 * math.sqrt(2))))
