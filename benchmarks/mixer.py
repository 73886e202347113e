"""One mixer in a process of its own: python -m benchmarks.mixer SPECIFICATION."""

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor, nn

from benchmarks.measure import Machine, best_times, serve
from fairseq_csp import build_attention
from fairseq_csp.modules.attention import HeadAttention, attention_class

# public implementations: the package, and what makes a layer of (dim, heads, length)
PEERS: dict[str, tuple[str, Callable[[int, int, int], nn.Module]]] = {
    "linear": (
        "linear_attention_transformer",
        lambda dim, heads, length: _of(
            "linear_attention_transformer.linear_attention_transformer", "SelfAttention"
        )(dim, heads),
    ),
    "linformer": (
        "linformer",
        lambda dim, heads, length: _of("linformer", "LinformerSelfAttention")(
            dim, length, k=256, heads=heads, share_kv=False
        ),
    ),
    "nystrom": (
        "nystrom_attention",
        lambda dim, heads, length: _of("nystrom_attention", "NystromAttention")(
            dim, dim // heads, heads, num_landmarks=64, residual_conv_kernel=35
        ),
    ),
    "performer": (
        "performer_pytorch",
        lambda dim, heads, length: _of("performer_pytorch", "SelfAttention")(
            dim, heads=heads, dim_head=dim // heads, nb_features=256
        ),
    ),
}


def _of(module: str, name: str) -> type[nn.Module]:
    return getattr(import_module(module), name)


class MixerLayer(nn.Module):
    """Queries, keys and values of one input, a mixer, and the output's map.

    Args:
        name: of the mixer.
        dim: channels.
        heads: attention heads.
        length: positions.
    """

    def __init__(self, name: str, dim: int, heads: int, length: int) -> None:
        super().__init__()
        self.mix = build_attention(
            name, value_dim=dim, heads=heads, max_positions=length, num_layers=2
        )
        cls = attention_class(name)
        self.whole = issubclass(cls, HeadAttention)
        maps = 0 if self.whole else 3 if cls.uses_queries else 1
        self.inputs = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(maps))
        self.out = None if self.whole else nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, positions, dim) to the same shape."""
        if self.out is None:
            return self.mix(x)
        values, *others = (project(x) for project in self.inputs)
        return self.out(self.mix(values, None, *others))


def measure_mixer(machine: Machine, spec: dict) -> dict:
    """Measure forward and backward pass of a layer with a mixer.

    Args:
        machine: where it runs.
        spec: ``mixer``, ``peer`` (the public implementation, not ours), ``batch``, ``length``,
            ``dim``, ``heads``, ``budget`` (seconds).

    Returns:
        ``seconds`` and ``peak_bytes``.
    """
    torch.manual_seed(0)
    sizes = spec["dim"], spec["heads"], spec["length"]
    layer = PEERS[spec["mixer"]][1](*sizes) if spec["peer"] else MixerLayer(spec["mixer"], *sizes)
    layer.to(machine.device)
    x = torch.randn(spec["batch"], spec["length"], spec["dim"], device=machine.device)
    x.requires_grad_()

    def clear() -> None:
        x.grad = None
        layer.zero_grad(set_to_none=True)

    def call() -> None:
        clear()
        layer(x).sum().backward()

    machine.limit_memory()
    peak = machine.peak_bytes(call, clear)
    (seconds,) = best_times(machine, [call], spec["budget"])
    return {"seconds": seconds, "peak_bytes": peak}


if __name__ == "__main__":
    serve(measure_mixer)
