"""The registry of attention functions: what mixes the positions of a row.

Every file in this folder is imported when the registry is, so that a new attention function is one
new file here, used by every architecture as ``--attention NAME``::

    @register_attention("mean")
    class MeanAttention(AttentionFunction):
        def forward(self, values, rows):
            total = rows.zero_padding(values).sum(2, keepdim=True)
            return (total / rows.lengths[:, None, None]).expand_as(values)
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.rows import Rows

ATTENTION_REGISTRY: dict[str, type["AttentionFunction"]] = {}


@dataclass(frozen=True)
class AttentionOptions:
    """What an attention function may need to know when it is built.

    Attributes:
        layer: index of its layer, from 0.
        num_layers: number of layers.
        dropout: probability of dropping an attention weight.
        csp_shift: see ``fairseq_csp.ops.csp``, as for the three that follow.
        csp_group_size: positions in a sorted group, or ``"full"``.
        csp_order: ``shift_sort`` or ``sort_shift``.
        csp_descending: sort from the largest to the smallest.
    """

    layer: int = 0
    num_layers: int = 1
    dropout: float = 0.0
    csp_shift: str = "exponential"
    csp_group_size: int | str = 2
    csp_order: str = "shift_sort"
    csp_descending: bool = False


class AttentionFunction(nn.Module):
    """Base class: takes the values of a batch, returns them mixed over the positions.

    A subclass implements ``forward(values, rows)``, or, with ``uses_queries = True``,
    ``forward(values, rows, queries, keys, bias)``:

    - values: (batch, channels, positions).
    - rows: :class:`fairseq_csp.modules.rows.Rows`, which positions of each row are valid. What
      stands at padded positions of ``values`` is arbitrary and must not reach valid ones.
    - queries, keys: (batch, width, positions).
    - bias: a module of ``fairseq_csp.modules.relative_bias`` or None.

    It returns a tensor of the shape of ``values``.
    """

    uses_queries = False

    def __init__(self, options: AttentionOptions) -> None:
        super().__init__()
        self.options = options

    def forward(self, values: Tensor, rows: Rows) -> Tensor:
        """Mix the positions of (batch, channels, positions)."""
        raise NotImplementedError


def register_attention(name: str) -> Callable:
    """Register an :class:`AttentionFunction` under a name for ``--attention``.

    Args:
        name: the name; not taken yet.

    Raises:
        ValueError: the name is taken, or the class is no AttentionFunction.
    """

    def register(cls: type[AttentionFunction]) -> type[AttentionFunction]:
        if name in ATTENTION_REGISTRY:
            raise ValueError(f"an attention function named {name!r} is registered already")
        if not issubclass(cls, AttentionFunction):
            raise ValueError(f"{cls.__name__} must extend AttentionFunction")
        ATTENTION_REGISTRY[name] = cls
        return cls

    return register


def attention_class(name: str) -> type[AttentionFunction]:
    """Look up an attention function.

    Args:
        name: the name it was registered under.

    Raises:
        UserError: there is none of that name; the message lists those there are.
    """
    if name not in ATTENTION_REGISTRY:
        known = ", ".join(sorted(ATTENTION_REGISTRY))
        raise UserError(f"--attention is {name!r}; it must be one of {known}")
    return ATTENTION_REGISTRY[name]


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
