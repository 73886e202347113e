"""The direct formulas: what the fast path is measured against.

As a user would write them from the papers and about as the published code does: positions before
channels, one call of ``torch.nn.functional`` for each step, autograd for the backward pass. Nothing
is slowed down. Rows hold no padding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_csp.models.config import LRAConfig, attention_name
from fairseq_csp.models.lra import LRAModel
from fairseq_csp.modules.pointwise import activation
from fairseq_csp.ops.csp import shift_steps
from fairseq_csp.ops.ema import moving_average_naive


def permute(values: Tensor, layer: int, num_layers: int, group_size: int = 2) -> Tensor:
    """Shift each channel by its exponential step, sort groups: CSP by an index and a general sort.

    Args:
        values: (batch, positions, channels); the groups divide the positions.
        layer: index of the layer, from 0.
        num_layers: number of layers.
        group_size: positions in a sorted group.

    Returns:
        (batch, positions, channels).
    """
    batch, positions, channels = values.shape
    steps = shift_steps(positions, channels, layer, num_layers).to(values.device)
    index = (torch.arange(positions, device=values.device)[:, None] - steps) % positions
    shifted = torch.gather(values, 1, index.repeat(batch, 1, 1))
    return shifted.unflatten(1, (-1, group_size)).sort(dim=2).values.flatten(1, 2)


def scale_norm(x: Tensor, scalar: Tensor, eps: float) -> Tensor:
    """Return ``scalar * x / sqrt(mean(x^2) + eps)``, the mean over the channels.

    Args:
        x: (batch, positions, channels), any floating dtype.
        scalar: (1,), the dtype of ``x``.
        eps: added to the mean square.

    Returns:
        The shape and dtype of ``x``.
    """
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * scalar


def relative_bias(weight: Tensor, positions: int) -> Tensor:
    """Return the matrix (positions, positions) whose entry [i, j] is the weight of j - i.

    Args:
        weight: (2P - 1,) weights of the distances from -(P - 1) to P - 1.
        positions: at most P.
    """
    middle = weight.size(0) // 2
    line = weight[middle - positions + 1 : middle + positions]
    rows = F.pad(line, (0, positions)).tile(positions)[:-positions]
    return rows.view(positions, -1)[:, positions - 1 : 2 * positions - 1]


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


class NaiveModel:
    """An LRA model's function by the direct formulas, on the model's own parameters.

    For the named variants of MEGA, FLASH and the Transformer, with any attention function of this
    package: whole rows (one chunk), the simple relative bias, sinusoidal positions, layers that do
    not share weights, CSP's default options.

    Args:
        model: whose parameters take the gradients; in the mode (training or not) to be imitated.
    """

    def __init__(self, model: LRAModel) -> None:
        self.cfg: LRAConfig = model.cfg
        self.training = model.training
        self.activation = activation(str(self.cfg.activation_fn))
        self.weights = Weights(dict(model.named_parameters()) | dict(model.named_buffers()))
        encoders = {"mega": self._mega, "flash": self._flash, "transformer": self._transformer}
        self.encode = encoders[str(self.cfg.layer_type)]

    def __call__(self, src_tokens: Tensor, src_lengths: Tensor | None = None) -> Tensor:
        """Classify rows without padding.

        Args:
            src_tokens: (batch, positions) symbols or pixels.
            src_lengths: not needed.

        Returns:
            Logits (batch, classes).
        """
        x = self.encode(self.weights.inside("encoder.encoder"), src_tokens)
        x = x.mean(1) if self.cfg.sen_rep_type == "mp" else x[:, 0]
        for layer in range(self.cfg.classifier_layers):
            x = F.gelu(self._drop(self.weights.linear(f"classifier.{layer}.0", x)))
        return F.linear(x, self.weights["sentence_projection_layer.weight"])

    def _drop(self, x: Tensor, p: float | None = None) -> Tensor:
        return F.dropout(x, self.cfg.dropout if p is None else p, self.training)

    def _norm(self, weights: Weights, x: Tensor, eps: float) -> Tensor:
        if self.cfg.norm_type == "scalenorm":
            return scale_norm(x, weights["scalar"], eps)
        if self.cfg.norm_type == "layernorm":
            return _layer_norm(weights, x)
        statistics = weights["running_mean"], weights["running_var"]
        affine = weights["weight"], weights["bias"]
        x = F.batch_norm(x.transpose(1, 2), *statistics, *affine, self.training, eps=eps)
        return x.transpose(1, 2)

    def _mega(self, weights: Weights, source: Tensor) -> Tensor:
        if source.is_floating_point():
            x = _embed_pixels(weights, source)
        else:
            x = F.embedding(source, weights["embed_tokens.embed.weight"])
        x = self._drop(x)
        for layer in range(self.cfg.encoder_layers):
            inside = weights.inside(f"layers.{layer}")
            x = self._mega_layer(inside.inside("mega_layer"), x, layer)
            x = self._feed_forward(inside.inside("nffn"), x)
        if self.cfg.encoder_normalize_before:
            x = self._norm(weights.inside("final_norm.norm"), x, 1e-5)
        return x

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
        mixed = self._attend(weights, values, shared, layer)
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
        limit = self.cfg.truncation_length
        names = ("delta", "alpha", "beta", "gamma", "omega")
        parameters = [weights[name] for name in names]
        average = moving_average_naive(
            x.transpose(1, 2), *parameters, truncation=limit if limit > 0 else None
        )
        return F.silu(average.transpose(1, 2))

    def _attend(self, weights: Weights, values: Tensor, shared: Tensor, layer: int) -> Tensor:
        """Attention of MEGA and FLASH, with queries and keys from one representation."""
        cfg = self.cfg
        name = attention_name(cfg)
        if name == "csp":
            return permute(values, layer, cfg.encoder_layers)
        queries, keys = (shared.unsqueeze(2) * weights["gamma"] + weights["beta"]).unbind(2)
        positions = values.size(1)
        bias = relative_bias(weights["rel_pos_bias.rel_pos_bias"], positions)
        if name == "softmax":
            queries = queries / math.sqrt(cfg.z_dim)
            scores = torch.bmm(queries, keys.transpose(1, 2)) + bias
            attention = F.softmax(scores, dim=-1)
        else:
            scores = torch.bmm(queries, keys.transpose(1, 2)) / positions + bias
            attention = F.relu(scores).square() if name == "relu2" else _laplace(scores)
        return torch.bmm(self._drop(attention, cfg.attention_dropout), values)

    def _flash(self, weights: Weights, source: Tensor) -> Tensor:
        cfg = self.cfg
        hidden, z_dim = cfg.encoder_hidden_dim, 0 if cfg.attention == "csp" else cfg.z_dim
        eps = 1e-6 if cfg.norm_type == "scalenorm" else 1e-5
        x = self._drop(_embed(weights, source))
        for layer in range(cfg.encoder_layers):
            unit = weights.inside(f"layers.{layer}.gau")
            normal = self._norm(weights.inside(f"layers.{layer}.pre_norm"), x, eps)
            base = F.silu(unit.linear("proj", normal))
            gate, values, shared = base.split([hidden, hidden, z_dim], dim=-1)
            mixed = self._drop(self._attend(unit, values, shared, layer), cfg.act_dropout)
            x = x + self._drop(unit.linear("out_proj", gate * mixed))
        return self._norm(weights.inside("final_norm"), x, eps)

    def _transformer(self, weights: Weights, source: Tensor) -> Tensor:
        cfg = self.cfg
        positions = weights["embed_positions.table"][: source.size(1)]
        x = _embed(weights, source) * math.sqrt(cfg.encoder_embed_dim) + positions
        x = self._drop(_layer_norm(weights.inside("emb_layer_norm"), x))
        for layer in range(cfg.encoder_layers):
            inside = weights.inside(f"layers.{layer}")
            mixed = self._multihead(inside.inside("self_attn"), x, layer)
            x = _layer_norm(inside.inside("self_attn_layer_norm"), x + self._drop(mixed))
            hidden = self._drop(self.activation(inside.linear("fc1", x)), cfg.act_dropout)
            hidden = self._drop(inside.linear("fc2", hidden))
            x = _layer_norm(inside.inside("final_layer_norm"), x + hidden)
        return x

    def _multihead(self, weights: Weights, x: Tensor, layer: int) -> Tensor:
        cfg = self.cfg
        values = weights.linear("v_proj", x)
        if cfg.attention == "csp":
            mixed = permute(values, layer, cfg.encoder_layers)
        else:
            heads = cfg.encoder_attention_heads
            queries = weights.linear("q_proj", x) * (cfg.encoder_embed_dim // heads) ** -0.5
            queries, keys, values = (
                part.unflatten(2, (heads, -1)).transpose(1, 2)
                for part in (queries, weights.linear("k_proj", x), values)
            )
            attention = F.softmax(queries @ keys.transpose(2, 3), dim=-1)
            mixed = self._drop(attention, cfg.attention_dropout) @ values
            mixed = mixed.transpose(1, 2).flatten(2)
        return weights.linear("out_proj", mixed)


def _embed(weights: Weights, source: Tensor) -> Tensor:
    if source.is_floating_point():
        return _embed_pixels(weights, source)
    return F.embedding(source, weights["embed_tokens.weight"])


def _embed_pixels(weights: Weights, source: Tensor) -> Tensor:
    return source.unsqueeze(2) * weights["embed_tokens.weight"] + weights["embed_tokens.bias"]


def _layer_norm(weights: Weights, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights["weight"], weights["bias"])


def _laplace(scores: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf((scores - 0.707107) / (0.282095 * math.sqrt(2))))
