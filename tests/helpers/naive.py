"""The formulas of the papers as they stand, for rows without padding, (batch, positions, dim)."""

import math

import torch
import torch.nn.functional as F

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


def logits(model, *documents):
    """Logits of a batch in which all rows of a document have the same length."""
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    cfg = model.cfg
    part = Part(weights, "encoder.encoder.", cfg, model.training)
    encode = {"mega": mega, "flash": flash, "transformer": transformer, "lstm": lstm}
    vectors = [encode[str(cfg.layer_type)](part, document) for document in documents]
    # the second document comes first
    x = torch.cat(vectors[::-1], dim=1)
    for layer in range(cfg.classifier_layers):
        x = F.gelu(part.root().linear(f"classifier.{layer}.0", x))
    return x @ weights["sentence_projection_layer.weight"].T


class Part:
    """The weights whose names start with a prefix."""

    def __init__(self, weights, prefix, cfg, training):
        self.weights, self.prefix, self.cfg, self.training = weights, prefix, cfg, training

    def __getitem__(self, name):
        return self.weights[self.prefix + name]

    def inside(self, name):
        return Part(self.weights, f"{self.prefix}{name}.", self.cfg, self.training)

    def root(self):
        return Part(self.weights, "", self.cfg, self.training)

    def linear(self, name, x):
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def embed(self, name, source):
        if source.is_floating_point():
            return source[..., None] * self[f"{name}.weight"] + self[f"{name}.bias"]
        return self[f"{name}.weight"][source]

    def norm(self, name, x, kind, eps):
        part = self.inside(name)
        if kind == "scalenorm":
            return part["scalar"] * x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps)
        if kind == "rmsnorm":
            return part["weight"] * x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps)
        if kind == "layernorm":
            mean, var = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
        elif self.training:
            mean, var = x.mean((0, 1)), x.var((0, 1), correction=0)
        else:
            mean, var = part["running_mean"], part["running_var"]
        return part["weight"] * (x - mean) / torch.sqrt(var + eps) + part["bias"]


def mega(part, source):
    cfg = part.cfg
    name = "embed_tokens" if source.is_floating_point() else "embed_tokens.embed"
    x = part.embed(name, source)
    if cfg.normalize_embedding:
        x = part.norm("embed_norm.norm", x, cfg.norm_type, 1e-5)
    for layer in range(cfg.encoder_layers):
        x = mega_layer(part.inside(f"layers.{layer}.mega_layer"), x, layer)
        if cfg.encoder_ffn_embed_dim > 0:
            x = mega_feed_forward(part.inside(f"layers.{layer}.nffn"), x)
    if cfg.encoder_normalize_before:
        x = part.norm("final_norm.norm", x, cfg.norm_type, 1e-5)
    return pool(x, cfg)


def mega_layer(part, x, layer):
    cfg = part.cfg
    act = ACTIVATIONS[str(cfg.activation_fn)]
    x0 = x
    if cfg.encoder_normalize_before:
        x = part.norm("norm.norm", x, cfg.norm_type, 1e-5)
    v = act(part.linear("v_proj", x))
    m = moving_average(part.inside("move"), x)
    d, h = cfg.encoder_embed_dim, cfg.encoder_hidden_dim
    z = 0 if cfg.attention == "csp" else cfg.z_dim
    u, zr, hx = part.linear("mx_proj", m).split([d, z + h, d], dim=2)
    u = torch.sigmoid(u)
    z, r = F.silu(zr).split([z, h], dim=2)
    chunk = cfg.chunk_size if cfg.chunk_size > 0 else x.size(1)
    reach = cfg.chunk_size if cfg.chunk_size > 0 else cfg.max_positions
    mixed = torch.cat(
        [
            attention(part, v[:, i : i + chunk], z[:, i : i + chunk], layer, reach)
            for i in range(0, x.size(1), chunk)
        ],
        dim=1,
    )
    h = act(hx + part.linear("h_proj", mixed * r))
    y = x0 + u * (h - x0)
    return y if cfg.encoder_normalize_before else part.norm("norm.norm", y, cfg.norm_type, 1e-5)


def mega_feed_forward(part, x):
    cfg = part.cfg
    y = x
    if cfg.encoder_normalize_before:
        y = part.norm("norm.norm", y, cfg.norm_type, 1e-5)
    y = part.linear("fc2", ACTIVATIONS[str(cfg.activation_fn)](part.linear("fc1", y))) + x
    return y if cfg.encoder_normalize_before else part.norm("norm.norm", y, cfg.norm_type, 1e-5)


def moving_average(part, x):
    """A weight for each pair of positions."""
    positions, dim = x.shape[1:]
    p = torch.sigmoid(part["delta"])
    q = 1 - p * torch.sigmoid(part["alpha"])
    lags = torch.arange(positions)
    kernel = p * part["beta"] * part["gamma"][..., None] / math.sqrt(p.size(1)) * q**lags
    kernel = kernel.sum(1)
    if (part.cfg.truncation_length or 0) > 0:
        kernel = kernel * (lags < part.cfg.truncation_length)
    back = lags[:, None] - lags
    weights = torch.where(back >= 0, kernel[:dim, back.abs()], 0)
    weights = weights + torch.where(back <= 0, kernel[dim:, back.abs()], 0)
    return F.silu(torch.einsum("dij,bjd->bid", weights, x) + part["omega"] * x)


def attention(part, v, z, layer, reach):
    """Attention of (batch, n, H) values without padding."""
    cfg = part.cfg
    if cfg.attention == "csp":
        return permute(v, cfg, layer)
    n = v.size(1)
    q = z * part["gamma"][0] + part["beta"][0]
    k = z * part["gamma"][1] + part["beta"][1]
    name = cfg.attention or str(cfg.attention_activation_fn)
    scale = 1 / math.sqrt(cfg.z_dim) if name == "softmax" else 1 / n
    scores = q @ k.transpose(1, 2) * scale + bias(part.inside("rel_pos_bias"), n, reach)
    if name == "softmax":
        weights = scores.softmax(-1)
    elif name == "relu2":
        weights = scores.clamp(min=0) ** 2
    else:
        weights = 0.5 * (1 + torch.erf((scores - 0.707107) / (0.282095 * math.sqrt(2))))
    return weights @ v


def bias(part, n, reach):
    i = torch.arange(n)
    if part.cfg.rel_pos_bias == "simple":
        return part["rel_pos_bias"][reach - 1 + i - i[:, None]]
    half = part.cfg.z_dim // 2
    angles = i[:, None] * torch.exp(-torch.arange(half) * math.log(10000) / half)

    def rotate(vector):
        a, b = vector[:, :half], vector[:, half:]
        sine, cosine = angles.sin(), angles.cos()
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=1)

    return rotate(part["alpha"]) @ rotate(part["beta"]).T


def permute(v, cfg, layer):
    """CSP of (batch, n, C) without padding, one channel at a time."""
    n, channels = v.shape[1:]
    group = n if cfg.csp_group_size == "full" else int(cfg.csp_group_size)

    def shift(x, c):
        if cfg.csp_shift == "exponential":
            step = math.ceil(n ** ((layer * channels + c) / (cfg.encoder_layers * channels)))
        elif cfg.csp_shift == "linear" and cfg.csp_group_size != "full":
            step = group * max(c - 1, 0)
        else:
            step = 0
        return x.roll(step, 1)

    def sort(x):
        parts = [x[:, i : i + group] for i in range(0, n, group)]
        return torch.cat([y.sort(1, descending=cfg.csp_descending).values for y in parts], 1)

    out = []
    for c in range(channels):
        x = v[:, :, c]
        out.append(sort(shift(x, c)) if cfg.csp_order == "shift_sort" else shift(sort(x), c))
    return torch.stack(out, dim=2)


def flash(part, source):
    cfg = part.cfg
    eps = 1e-6 if cfg.norm_type in ("scalenorm", "rmsnorm") else 1e-5
    x = part.embed("embed_tokens", source)
    h, z = cfg.encoder_hidden_dim, 0 if cfg.attention == "csp" else cfg.z_dim
    for layer in range(cfg.encoder_layers):
        gau = part.inside(f"layers.{layer}.gau")
        y = part.norm(f"layers.{layer}.pre_norm", x, cfg.norm_type, eps)
        u, v, shared = F.silu(gau.linear("proj", y)).split([h, h, z], dim=2)
        mixed = attention(gau, v, shared, layer, cfg.max_positions)
        x = x + gau.linear("out_proj", u * mixed)
    return pool(part.norm("final_norm", x, cfg.norm_type, eps), cfg)


def transformer(part, source):
    cfg = part.cfg
    dim, n = cfg.encoder_embed_dim, source.size(1)
    # the padding symbol has number 1
    first = 0 if source.is_floating_point() else 2
    x = part.embed("embed_tokens", source)
    if cfg.encoder_learned_pos:
        x = x + part["embed_positions.weight"][first : first + n]
    else:
        half = dim // 2
        rates = torch.exp(-torch.arange(half) * math.log(10000) / (half - 1))
        angles = torch.arange(first, first + n)[:, None] * rates
        x = x * math.sqrt(dim) + torch.cat([angles.sin(), angles.cos()], dim=1)
    if cfg.encoder_normalize_before:
        x = part.norm("emb_layer_norm", x, "layernorm", 1e-5)
    for layer in range(cfg.encoder_layers):
        own = part.inside(f"layers.{0 if cfg.tie_layer_weights else layer}")
        attn = own.inside("self_attn")
        v = attn.linear("v_proj", x)
        if cfg.attention == "csp":
            mixed = permute(v, cfg, layer)
        else:
            heads = []
            q, k = attn.linear("q_proj", x), attn.linear("k_proj", x)
            size = dim // cfg.encoder_attention_heads
            for i in range(0, dim, size):
                scores = q[..., i : i + size] @ k[..., i : i + size].transpose(1, 2)
                heads.append((scores / math.sqrt(size)).softmax(-1) @ v[..., i : i + size])
            mixed = torch.cat(heads, dim=2)
        x = own.norm("self_attn_layer_norm", x + attn.linear("out_proj", mixed), "layernorm", 1e-5)
        y = own.linear("fc2", ACTIVATIONS[str(cfg.activation_fn)](own.linear("fc1", x)))
        x = own.norm("final_layer_norm", x + y, "layernorm", 1e-5)
    return pool(x, cfg)


def lstm(part, source):
    cfg = part.cfg
    hidden = cfg.encoder_ffn_embed_dim
    x = part.embed("embed_tokens", source)
    for layer in range(cfg.encoder_layers):
        directions, last = [], []
        for suffix in (f"l{layer}", f"l{layer}_reverse"):
            steps = range(x.size(1))
            h = c = x.new_zeros(len(x), hidden)
            outputs = {}
            for i in reversed(steps) if suffix.endswith("reverse") else steps:
                gates = x[:, i] @ part[f"lstm.weight_ih_{suffix}"].T
                gates = gates + h @ part[f"lstm.weight_hh_{suffix}"].T
                gates = gates + part[f"lstm.bias_ih_{suffix}"] + part[f"lstm.bias_hh_{suffix}"]
                enter, forget, new, leave = gates.chunk(4, dim=1)
                c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * torch.tanh(new)
                h = torch.sigmoid(leave) * torch.tanh(c)
                outputs[i] = h
            directions.append(torch.stack([outputs[i] for i in steps], dim=1))
            last.append(h)
        x = torch.cat(directions, dim=2)
    return torch.cat(last, dim=1) if cfg.sen_rep_type == "cls" else x.mean(1)


def pool(x, cfg):
    return x[:, 0] if cfg.sen_rep_type == "cls" else x.mean(1)
