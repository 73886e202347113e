"""With what each attention function is built in these tests, and how to read its golden files.

An entry that is not named here is tested as it is by default, at linear cost.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fairseq_csp.modules.attention import ATTENTION_REGISTRY
from tests.helpers.building import small

DEFAULTS = {"value_dim": 12, "query_dim": 8, "heads": 2, "max_positions": 40}

# arguments of build_attention, by entry and name of the case
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "gqa": {"half": {"heads": 4}, "multi-query": {"heads": 2, "gqa_heads": 1}},
    "kdgqa": {
        "": {"value_dim": 24, "query_dim": 24, "heads": 6, "kdgqa_heads": 3},
        "least": {"value_dim": 24, "query_dim": 24, "heads": 6, "kdgqa_heads": 2, "least": 1},
    },
    "dgqa": {"": {"heads": 4}},
    "sqa": {"": {"heads": 4}, "symmetric": {"heads": 4, "queries": 2, "keys": 2}},
    "luna": {"": {"size": 3}},
    "moh": {
        "": {"heads": 4},
        "many": {"heads": 4, "shared": 2, "routed": 1},
        "none-shared": {"heads": 4, "shared": 0},
    },
    "fnet": {"both-axes": {}, "positions": {"channels": "off", "norm": "none"}},
    "s4d": {"two-way": {"state": 6}, "one-way": {"state": 6, "two_way": "off"}},
    "nystrom": {"": {"landmarks": 4, "conv": 5}, "no-conv": {"landmarks": 4, "conv": 0}},
    "agent": {
        "text": {"tokens": 4},
        "no-conv": {"tokens": 4, "conv": "off"},
        "image": {"tokens": 4, "grid": (3, 5)},
    },
    "sigmoid": {"by-length": {}, "number": {"shift": -1.5}},
    "urpe": {"distances": {}, "buckets": {"buckets": 5, "max_positions": 10}},
    "local": {"window": {"window": 2}, "global": {"window": 1, "global": 2}},
    "longformer": {"": {"window": 3}, "large": {"window": 30, "global": 0}},
    "bigbird": {
        "": {"window": 2, "global": 1, "random": 2},
        "windowed": {"window": 1, "global": 0, "random": 2},
    },
    "hyena": {
        "two-way": {"filter_width": 6},
        "order-3": {"filter_width": 6, "order": 3, "two_way": "off", "embedding": 5},
    },
    "gau_mixed": {"": {"heads": 1, "chunk": 4}},
    "hilo": {
        "text": {"window": 3},
        "near": {"alpha": 0.0},
        "image": {"grid": (4, 6), "heads": 3, "query_dim": 12},
    },
    "biformer": {"text": {"regions": 3, "top": 2}, "image": {"grid": (4, 6), "regions": 2}},
    "spectral": {"": {"grid": (3, 5)}},
    "sinkformer": {"three": {}, "one": {"iterations": 1}},
    "synthesizer": {"dense": {}, "random": {"kind": "random"}},
    "channel": {"": {"query_dim": 12}},
    "combiner": {
        "": {"segment": 3},
        "mean": {"segment": 4, "pool": "mean"},
        "sum": {"segment": 2, "pool": "sum"},
        "default": {},
    },
    "performer": {"": {"features": 10}, "relu": {"features": 6, "kernel": "relu"}},
    "kernel_rpe": {"": {"features": 5}, "raw": {"features": 5, "normalise": "off"}},
    "linformer": {"": {"size": 4}, "shared": {"size": 3, "share": True}},
    "csp": {"pairs": {}, "full": {"group_size": "full", "shift": "linear"}},
}

# their time grows with the square of the length
QUADRATIC = {"moh", "gqa", "kdgqa", "dgqa", "sqa", "softmax", "relu2", "laplace", "sigmoid", "urpe"}
QUADRATIC |= {"cga", "sinkformer", "synthesizer", "gmlp"}

# what gradcheck may differ by where a part of an entry carries no gradient by definition
NUMERICAL: dict[str, float] = {"performer": 1e-3}


@dataclass(frozen=True)
class Case:
    """One entry with its arguments."""

    name: str
    variant: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}-{self.variant}" if self.variant else self.name

    @property
    def grid(self) -> tuple[int, int] | None:
        return self.arguments.get("grid")


EVERY_CASE = [
    Case(name, variant, DEFAULTS | arguments)
    for name in sorted(ATTENTION_REGISTRY)
    for variant, arguments in CASES.get(name, {"": {}}).items()
]


def options_of(name: str | None) -> dict[str, Any]:
    """The flags of an entry's first case, without those of where it stands."""
    arguments = next(iter(CASES.get(name, {"": {}}).values()))
    return {
        f"{name}_{key.removeprefix(f'{name}_')}": value
        for key, value in arguments.items()
        # the number of heads is another one in a model
        if key not in (*DEFAULTS, "grid") and not key.endswith("heads")
    }


def model_of(family: str, task: str, name: str | None, **options: Any) -> torch.nn.Module:
    """A small model of a family with an entry as in its first case."""
    where = {"attention": name, "encoder_attention_heads": 4, "keep_padding": True}
    return small(f"{family}_lra_{task}", **(options_of(name) | where | options))


@dataclass(frozen=True)
class Golden:
    """How golden files of an entry are read.

    Attributes:
        options: from the file's options to those of the entry.
        parameters: the file's parameter by the entry's own name, or what makes it of the file's;
            those of a same name are taken without it.
        projections: the file's linear maps around the entry by role: q, k, v and out; behind a
            colon which third of a joint one it is.
        tolerance: in float64, relative to the largest number.
    """

    options: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {}
    parameters: dict[str, str | Callable[[Mapping[str, Tensor]], Tensor]] = field(
        default_factory=dict
    )
    projections: dict[str, str] = field(default_factory=dict)
    tolerance: float = 1e-10


def _s4d_kernels(theirs: Mapping[str, Tensor]) -> Tensor:
    names = ("C.forward", "C.backward") if "C.forward" in theirs else ("C",)
    return torch.stack([theirs[name] for name in names])


def _third(name: str, index: int, theirs: Mapping[str, Tensor]) -> Tensor:
    return theirs[name].chunk(3)[index]


_GROUPED = Golden(
    options=lambda given: {f"{given['kind']}_heads": given["key_heads"]},
    parameters={
        f"{own}_proj.{kind}": f"{theirs}.{kind}"
        for own, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "proj"))
        for kind in ("weight", "bias")
    },
)

_GATED = Golden(
    options=lambda given: {key: given[key] for key in ("shared", "routed")},
    parameters={
        "out_proj.weight": "proj.weight",
        "out_proj.bias": "proj.bias",
        **{
            f"{role}_proj.{kind}": functools.partial(_third, f"qkv.{kind}", index)
            for index, role in enumerate("qkv")
            for kind in ("weight", "bias")
        },
    },
)

GOLDEN: dict[str, Golden] = {
    "moh": _GATED,
    "gqa": _GROUPED,
    "kdgqa": _GROUPED,
    "sqa": Golden(
        options=lambda given: {"queries": given["query_heads"], "keys": given["key_heads"]}
    ),
    "fnet": Golden(options=lambda given: {"norm": given["norm"]}),
    "s4d": Golden(
        options=lambda given: {"state": given["state"], "two_way": given["bidirectional"]},
        parameters={"C": _s4d_kernels},
    ),
    "nystrom": Golden(
        options=lambda given: {"landmarks": given["landmarks"], "conv": given["conv"]}
    ),
    "agent": Golden(
        options=lambda given: {"tokens": given["agents"]},
        parameters={"conv.weight": "dwc.weight", "conv.bias": "dwc.bias"},
        projections={"q": "qkv:0", "k": "qkv:1", "v": "qkv:2", "out": "proj"},
    ),
    "hyena": Golden(
        options=lambda given: {
            "order": given["order"],
            "filter_width": given["filter_width"],
            "embedding": given["embedding"],
            "two_way": given["bidirectional"],
        },
    ),
    "hilo": Golden(options=lambda given: {key: given[key] for key in ("window", "alpha")}),
    "biformer": Golden(
        options=lambda given: {"regions": given["windows_per_side"], "top": given["topk"]},
        parameters={"qkv.weight": "qkv.qkv.weight", "qkv.bias": "qkv.qkv.bias"},
    ),
    "spectral": Golden(),
    "channel": Golden(projections={"q": "qkv:0", "k": "qkv:1", "v": "qkv:2", "out": "proj"}),
    "sigmoid": Golden(options=lambda given: {"shift": given["bias"]}),
    "urpe": Golden(
        parameters={"factor": "rel_factor", "bias": "rel_bias"},
        projections={"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"},
    ),
    "combiner": Golden(
        options=lambda given: {"segment": given["segment"], "pool": given["summary"]},
        projections={"q": "q", "k": "k", "v": "v", "out": "out"},
        tolerance=5e-6,
    ),
    "linear": Golden(),
    "cosformer": Golden(),
    "performer": Golden(
        options=lambda given: {"features": given["features"], "kernel": given["kernel"]}
    ),
    "linformer": Golden(options=lambda given: {"size": given["k"]}, parameters={"projection": "E"}),
    "local": Golden(options=lambda given: {key: given[key] for key in ("window", "global")}),
    "longformer": Golden(
        options=lambda given: {key: given[key] for key in ("window", "global")},
        projections={"q": "query", "k": "key", "v": "value"},
        tolerance=5e-7,
    ),
}
