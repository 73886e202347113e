"""One MEGA layer in a process of its own: python -m benchmarks.mega_layer SPECIFICATION."""

from importlib import import_module

import torch
from torch import nn

from benchmarks.measure import Machine, best_times, serve
from fairseq_csp.modules.attention import AttentionContext, _recomputed, make_attention
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.mega_layer import GatedMovingAverage, MegaEncoderLayer
from fairseq_csp.modules.pointwise import NormalizedFeedForward

COMPONENTS = 16
# where transformers has, or had, MEGA
PEERS = ("transformers.models.mega", "transformers.models.deprecated.mega")


def public_mega() -> str | None:
    """Return the module of transformers' MEGA, None where it is not installed."""
    for name in PEERS:
        try:
            import_module(f"{name}.modeling_mega")
        except ImportError:
            continue
        return name
    return None


def our_layer(dim: int, hidden: int, z_dim: int, length: int, attention: str) -> nn.Module:
    """Return a layer with normalisation first, without dropout, on (batch, dim, positions)."""
    shared = {
        "activation_fn": "silu",
        "norm_type": "layernorm",
        "prenorm": True,
        "dropout": 0.0,
        "hidden_dropout": 0.0,
        "feature_dropout": False,
    }
    mix = make_attention(attention, AttentionContext(hidden, z_dim, has_bias=True), {})
    relative = {"relative_bias": "simple", "max_positions": length}
    average = GatedMovingAverage(
        dim, hidden, z_dim, COMPONENTS, attention=mix, **relative, **shared
    )
    return MegaEncoderLayer(average, NormalizedFeedForward(dim, hidden, **shared))


def public_layer(dim: int, hidden: int, z_dim: int, length: int, attention: str) -> nn.Module:
    """Return transformers' layer of the same options, on (positions, batch, dim)."""
    name = public_mega()
    config = import_module(name).MegaConfig(
        hidden_size=dim,
        intermediate_size=hidden,
        nffn_hidden_size=hidden,
        shared_representation_size=z_dim,
        ema_projection_size=COMPONENTS,
        max_positions=length,
        attention_activation=attention,
        activation="silu",
        normalization_type="layernorm",
        relative_positional_bias="simple",
        use_chunking=False,
        dropout_prob=0.0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return import_module(f"{name}.modeling_mega").MegaBlock(config)


def measure_layer(machine: Machine, spec: dict) -> dict:
    """Measure forward and backward pass of a layer.

    Args:
        machine: where it runs.
        spec: ``which`` (``ours``; ``whole``, ours with all scores at once; ``public``), ``batch``,
            ``length``, ``dim``, ``hidden``, ``z_dim``, ``attention``, ``budget`` (seconds).

    Returns:
        ``seconds``, ``peak_bytes`` and ``parameters``.
    """
    torch.manual_seed(0)
    sizes = spec["dim"], spec["hidden"], spec["z_dim"], spec["length"], spec["attention"]
    batch, length = spec["batch"], spec["length"]
    if spec["which"] == "whole":
        _recomputed.FEW_SCORES = _recomputed.SCORES_ON_DEVICE = batch * length**2
        _recomputed.FEW_POSITIONS = length
    public = spec["which"] == "public"
    layer = (public_layer if public else our_layer)(*sizes).to(machine.device).train()
    shape = (length, batch, spec["dim"]) if public else (batch, spec["dim"], length)
    x = torch.randn(shape, device=machine.device).requires_grad_()
    lengths = SequenceLengths((length,) * batch, length, machine.device)

    def clear() -> None:
        x.grad = None
        layer.zero_grad(set_to_none=True)

    def call() -> None:
        clear()
        (layer(x, None, None)[0] if public else layer(x, lengths)).sum().backward()

    machine.limit_memory()
    peak = machine.peak_bytes(call, clear)
    (seconds,) = best_times(machine, [call], spec["budget"])
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    return {"seconds": seconds, "peak_bytes": peak, "parameters": parameters}


if __name__ == "__main__":
    serve(measure_layer)
