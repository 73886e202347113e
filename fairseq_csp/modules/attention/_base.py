"""What an attention function is: its context, its options and the three base classes."""

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.relative_bias import rotary_angles, rotate


@dataclass(frozen=True)
class AttentionContext:
    """Where an attention function stands in a model.

    Attributes:
        value_dim: channels of the values, all heads together; at head level those of the layer.
        query_dim: channels of the queries and of the keys, all heads together; 0 without them.
        heads: attention heads; they divide both.
        max_positions: most positions of a row (of a chunk where attention stays in chunks); None
            where there is no limit.
        grid: rows and columns of the image whose pixels or patches the positions are; None for
            text.
        layer: index of the layer, from 0.
        num_layers: number of layers.
        dropout: probability of dropping an attention weight.
        has_bias: whether each call brings a relative position bias.
        rotary: whether queries and keys are rotated by their positions: by the layer, or by
            functions with maps of their own (:meth:`AttentionFunction.turn`).
    """

    value_dim: int
    query_dim: int = 0
    heads: int = 1
    max_positions: int | None = None
    grid: tuple[int, int] | None = None
    layer: int = 0
    num_layers: int = 1
    dropout: float = 0.0
    has_bias: bool = False
    rotary: bool = False


def option(
    default: Any, text: str, *, choices: Sequence[str] | None = None, needs: str | None = None
) -> Any:
    """Declare a field of a dataclass of options, of an attention function or a family.

    Args:
        default: the value where none is given.
        text: what the option does, for ``--help``.
        choices: the values it can have, if there are few.
        needs: of a family: what an attention function must use for the option to have an effect:
            ``queries``, ``bias``, ``dropout`` or ``heads``.
    """
    return field(default=default, metadata={"help": text, "choices": choices, "needs": needs})


@dataclass
class NoOptions:
    """The options of a function that has none."""


class AttentionMaps(NamedTuple):
    """What an attention function did with the first row of a batch.

    Attributes:
        kind: ``channel`` or ``head``, what a map belongs to; empty where there is one map.
        weights: (maps, positions, positions): entry [m, i, j] is the weight of position j in the
            output's position i.
    """

    kind: str
    weights: Tensor


class AttentionFunction(nn.Module):
    """What mixes the positions of each row; see the three subclasses for what it is called with.

    Padded positions of the inputs may hold anything, NaN included, and must not reach valid ones;
    what comes out at padded positions is ignored.

    Args:
        context: where the function stands in the model.
        options: an instance of ``options_type``.

    Raises:
        UserError: the channels of a head cannot be halved for the rotation.

    Attributes:
        name: the name it is registered under.
        options_type: the dataclass of its options.
        uses_queries: whether it is called with queries and keys.
        uses_bias: whether it adds a relative position bias to scores; MEGA and FLASH build none
            for the others.
        uses_dropout: whether ``context.dropout`` has an effect.
        uses_heads: whether the number of heads has one.
        images_only: whether the positions must be those of an image.
        families: the families of encoders that can take it; None: all that call it as its base
            class says.
        carried: the class that takes its place in an architecture which carries a second stream.
        refuses: functions whose options it fixes, so that their flags are an error beside it.
        graphable: whether its work follows from tensors alone, without numbers that are drawn,
            counted or looked at on the host: what ``--cuda-graphs`` needs.
        packable: whether it takes rows that lie end to end, ``PackedLengths``; MEGA and FLASH take
            them apart for the others.
        layer: index of the layer; a layer that is repeated sets it before each call.
    """

    name: ClassVar[str] = ""
    options_type: ClassVar[type] = NoOptions
    uses_queries: ClassVar[bool] = False
    uses_bias: ClassVar[bool] = False
    uses_dropout: ClassVar[bool] = False
    uses_heads: ClassVar[bool] = False
    images_only: ClassVar[bool] = False
    families: ClassVar[tuple[str, ...] | None] = None
    carried: ClassVar["type[CarriedAttention] | None"] = None
    refuses: ClassVar[tuple[str, ...]] = ()
    graphable: ClassVar[bool] = False
    packable: ClassVar[bool] = False

    def __init__(self, context: AttentionContext, options: Any = None) -> None:
        super().__init__()
        self.context = context
        self.options = self.options_type() if options is None else options
        self.layer = context.layer
        if context.rotary and self.uses_heads and context.value_dim % (2 * context.heads):
            raise UserError(
                f"--encoder-attention-heads {context.heads} does not cut {context.value_dim} "
                "channels into heads of an even number, which the rotation by positions needs"
            )

    @property
    def reach(self) -> int:
        """The most positions of a row, of a function whose parameters depend on them.

        Raises:
            UserError: it was built without.
        """
        if self.context.max_positions is None:
            raise UserError(f"{self.name} needs max_positions, the most positions of a row")
        return self.context.max_positions

    def start_batch(self) -> None:
        """Forget what was kept for a loss; called before a batch passes, in one part or several."""

    def after_update(self, updates: int) -> None:
        """Renew what training renews; called in all processes after each update.

        Args:
            updates: how many there have been.
        """

    def auxiliary_loss(self) -> Tensor | None:
        """Return the weighted loss that the criterion adds for the batch; None if there is none.

        Of a mean over the layers it is this function's part.
        """
        return None

    def attention_map(self, *inputs: Any) -> AttentionMaps:
        """Return the weights with which the first row's positions are mixed.

        Args:
            inputs: what ``forward`` is called with.

        Raises:
            UserError: the function has none, which is so unless a subclass says how to get them.
        """
        raise UserError(f"--attention {self.name} has no attention map to draw")

    def turn(self, x: Tensor) -> Tensor:
        """Rotate queries or keys by their positions where the context wants that, else leave them.

        To be called by functions that have maps of their own.

        Args:
            x: (..., width of a head, positions), any floating dtype.

        Returns:
            The shape and dtype of ``x``.
        """
        if not self.context.rotary:
            return x
        angles = rotary_angles(x.size(-1), x.size(-2), x.device)
        return rotate(x.transpose(-1, -2), *angles).transpose(-1, -2).to(x.dtype)

    def fold(self, x: Tensor) -> Tensor:
        """Fold the heads into the batch: (batch, heads * width, positions) to (batch * heads, ...).

        Head h of row b becomes row ``b * heads + h``; what is contiguous, channels or positions,
        stays so.
        """
        heads = self.context.heads
        if heads == 1:
            return x
        if x.stride(1) == 1:
            # in steps whose backward pass copies in this order too
            apart = x.transpose(1, 2).unflatten(2, (heads, -1))
            return apart.transpose(1, 2).flatten(0, 1).transpose(1, 2)
        return x.unflatten(1, (heads, -1)).flatten(0, 1)

    def unfold(self, x: Tensor) -> Tensor:
        """Undo :meth:`fold`."""
        heads = self.context.heads
        if heads == 1:
            return x
        if x.stride(1) == 1:
            apart = x.transpose(1, 2).unflatten(0, (-1, heads))
            return apart.transpose(1, 2).flatten(2).transpose(1, 2)
        return x.unflatten(0, (-1, heads)).flatten(1, 2)


class ValueAttention(AttentionFunction):
    """Base class of functions on the values alone."""

    def forward(self, values: Tensor, lengths: SequenceLengths) -> Tensor:
        """Mix the positions.

        Args:
            values: (batch, channels, positions), any floating dtype.
            lengths: valid positions of each row.

        Returns:
            The shape and dtype of ``values``.
        """
        raise NotImplementedError


class QueryKeyAttention(AttentionFunction):
    """Base class of functions of queries and keys; a subclass gives :meth:`mix`."""

    uses_queries = True
    uses_dropout = True
    uses_heads = True

    def forward(
        self,
        values: Tensor,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: nn.Module | None = None,
    ) -> Tensor:
        """Mix the positions.

        Args:
            values: (batch, heads * channels, positions), any floating dtype.
            lengths: valid positions of each row.
            queries: (batch, heads * width, positions).
            keys: the shape of the queries.
            bias: a module of ``fairseq_csp.modules.relative_bias``, or None.

        Returns:
            The shape and dtype of ``values``.
        """
        folded = (self.fold(lengths.zero_padding(x)) for x in (values, queries, keys))
        folded_values, folded_queries, folded_keys = folded
        lengths = lengths.repeat(self.context.heads)
        mixed = self.mix(folded_values, lengths, folded_queries, folded_keys, bias)
        return self.unfold(mixed).to(values.dtype)

    def mix(
        self,
        values: Tensor,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: nn.Module | None,
    ) -> Tensor:
        """Mix the positions of each head, the heads folded into the batch.

        Args:
            values: (batch * heads, channels, positions), 0 at padded positions, any floating dtype.
            lengths: valid positions of each row and head; a row may have none.
            queries: (batch * heads, width, positions), 0 at padded positions.
            keys: the shape of the queries, 0 at padded positions.
            bias: as ``forward`` is given it.

        Returns:
            The shape of ``values``, any floating dtype.
        """
        raise NotImplementedError


class WideAttention(QueryKeyAttention):
    """Base class of functions that compute in float32 or wider, also under autocast."""

    def mix(
        self,
        values: Tensor,
        lengths: SequenceLengths,
        queries: Tensor,
        keys: Tensor,
        bias: nn.Module | None,
    ) -> Tensor:
        """Widen the numbers and mix them by :meth:`mix_wide`."""
        with torch.autocast(values.device.type, enabled=False):
            dtype = torch.promote_types(values.dtype, torch.float32)
            values, queries, keys = (x.to(dtype) for x in (values, queries, keys))
            return self.mix_wide(values, lengths, queries, keys)

    def mix_wide(
        self, values: Tensor, lengths: SequenceLengths, queries: Tensor, keys: Tensor
    ) -> Tensor:
        """Mix as :meth:`mix` does, in one dtype of float32 or wider and without a bias."""
        raise NotImplementedError


class HeadAttention(AttentionFunction):
    """Base class of functions that replace a multi-head layer, its linear maps included.

    A subclass hands its queries and keys to :meth:`turn`, or sees no positions in the rotary
    Transformer.
    """

    uses_dropout = True
    uses_heads = True

    def forward(self, x: Tensor, lengths: SequenceLengths) -> Tensor:
        """Mix the positions.

        Args:
            x: (batch, channels, positions), the layer's input.
            lengths: valid positions of each row.

        Returns:
            The shape and dtype of ``x``.
        """
        raise NotImplementedError


class CarriedAttention(AttentionFunction):
    """Base class of forms that replace a multi-head layer and carry a second stream beside it.

    The layer adds what is given for the stream to it, normalised as it normalises its positions.
    """

    uses_dropout = True
    uses_heads = True

    def start(self, batch: int) -> Tensor:
        """Return the stream that goes into the first layer, (batch, vectors, channels)."""
        raise NotImplementedError

    def forward(self, x: Tensor, lengths: SequenceLengths, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the positions.

        Args:
            x: (batch, channels, positions), the layer's input.
            lengths: valid positions of each row.
            stream: (batch, vectors, channels).

        Returns:
            The shape and dtype of ``x``, and what is added to the stream, of its shape.
        """
        raise NotImplementedError


@dataclass
class Stream:
    """A second stream beside the positions of a batch; each layer replaces the vectors.

    Attributes:
        vectors: (batch, vectors, channels).
    """

    vectors: Tensor


def start_batch(model: nn.Module) -> None:
    """Tell the attention functions of a model that a batch begins, in one part or several."""
    for function in _functions_of(model):
        function.start_batch()


def after_update(model: nn.Module, updates: int) -> None:
    """Tell the attention functions of a model that the parameters were updated.

    Args:
        model: what trains.
        updates: how many updates there have been.
    """
    for function in _functions_of(model):
        function.after_update(updates)


def auxiliary_loss(model: nn.Module) -> Tensor | None:
    """Return the sum of what a model's attention functions want added to the loss of a batch.

    Returns:
        A scalar; None where there is nothing to add, as in evaluation.
    """
    terms = (function.auxiliary_loss() for function in _functions_of(model))
    losses = [loss for loss in terms if loss is not None]
    return torch.stack(losses).sum() if losses else None


def _functions_of(model: nn.Module) -> list[AttentionFunction]:
    return [module for module in model.modules() if isinstance(module, AttentionFunction)]


ON_OFF = ("on", "off")


def read_options(options_type: type, name: str, given: dict[str, Any]) -> Any:
    """Make the options of a function from values as flags or a program give them.

    Args:
        options_type: the dataclass.
        name: the function's name, with which a key may begin (``csp_shift`` for ``shift``); or it
            begins with the options' ``shared_name`` where several functions have the same.
        given: value by key; a key that is a Python keyword may lack the underscore at its end.

    Raises:
        UserError: a key is unknown, or a value is of another kind or none of the choices.
    """
    fields = {item.name: item for item in dataclasses.fields(options_type)}
    hints = typing.get_type_hints(options_type)
    shared = getattr(options_type, "shared_name", name)
    values = {}
    for key, value in given.items():
        short = key.removeprefix(f"{name}_").removeprefix(f"{shared}_")
        known = next((k for k in (key, short, f"{short}_") if k in fields), None)
        if known is None:
            there = ", ".join(item.rstrip("_") for item in fields) or "none"
            raise UserError(f"{name} has no option {key!r}; its options are: {there}")
        choices = fields[known].metadata.get("choices")
        values[known] = _read(flag_of(name, known), value, hints[known], choices)
    return options_type(**values)


def flag_of(name: str, key: str) -> str:
    """Return the flag of an option: ``--csp-group-size`` for ``group_size`` of ``csp``."""
    return "--" + f"{name}_{key.rstrip('_')}".replace("_", "-")


def check_counts(name: str, options: Any, **least: int) -> None:
    """Check options that are numbers of something.

    Args:
        name: of the function.
        options: an instance of its dataclass of options.
        **least: the smallest value of an option that is allowed, by field; None always is.

    Raises:
        UserError: a value is smaller.
    """
    for key, smallest in least.items():
        value = getattr(options, key)
        if value is not None and value < smallest:
            raise UserError(f"{flag_of(name, key)} is {value}; it must be at least {smallest}")


def _read(flag: str, value: Any, hint: Any, choices: Sequence[str] | None) -> Any:
    value = getattr(value, "value", value)  # of an enum
    kinds = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    if choices:
        if value not in choices:
            raise UserError(f"{flag} is {value!r}; it must be one of {', '.join(choices)}")
    elif bool in kinds:
        if value in ON_OFF:
            return value == "on"
        if value not in (True, False):
            raise UserError(f"{flag} is {value!r}; it must be on or off")
        return bool(value)
    elif int in kinds or float in kinds:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or (float not in kinds and int(value) != value):
            what = "number" if float in kinds else "whole number"
            raise UserError(f"{flag} is {value!r}; it must be a {what}")
        return value if float in kinds else int(value)
    return value
