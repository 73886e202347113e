"""With what each attention function is built in these tests, and how to read its golden files.

An entry that is not named here is tested as it is by default, at linear cost.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fairseq_csp.modules.attention import ATTENTION_REGISTRY

DEFAULTS = {"value_dim": 12, "query_dim": 8, "heads": 2, "max_positions": 40}

# arguments of build_attention, by entry and name of the case
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "sigmoid": {"by-length": {}, "number": {"shift": -1.5}},
    "urpe": {"distances": {}, "buckets": {"buckets": 5, "max_positions": 10}},
    "local": {"window": {"window": 2}, "global": {"window": 1, "global": 2}},
    "longformer": {"": {"window": 3}, "large": {"window": 30, "global": 0}},
    "bigbird": {
        "": {"window": 2, "global": 1, "random": 2},
        "windowed": {"window": 1, "global": 0, "random": 2},
    },
    "csp": {"pairs": {}, "full": {"group_size": "full", "shift": "linear"}},
}

# their time grows with the square of the length
QUADRATIC = {"softmax", "relu2", "laplace", "sigmoid", "urpe"}

# what gradcheck may differ by where a part of an entry carries no gradient by definition
NUMERICAL: dict[str, float] = {}


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


@dataclass(frozen=True)
class Golden:
    """How golden files of an entry are read.

    Attributes:
        options: from the file's options to those of the entry.
        parameters: the file's parameter by the entry's own name; those of a same name are taken
            without it.
        projections: the file's linear maps around the entry by role: q, k, v and out.
        tolerance: in float64, relative to the largest number.
    """

    options: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {}
    parameters: dict[str, str] = field(default_factory=dict)
    projections: dict[str, str] = field(default_factory=dict)
    tolerance: float = 1e-10


GOLDEN: dict[str, Golden] = {
    "sigmoid": Golden(options=lambda given: {"shift": given["bias"]}),
    "urpe": Golden(
        parameters={"factor": "rel_factor", "bias": "rel_bias"},
        projections={"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"},
    ),
    "local": Golden(options=lambda given: {key: given[key] for key in ("window", "global")}),
    "longformer": Golden(
        options=lambda given: {key: given[key] for key in ("window", "global")},
        projections={"q": "query", "k": "key", "v": "value"},
        tolerance=5e-7,
    ),
}
