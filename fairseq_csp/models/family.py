"""The registry of families of encoders, and which attention functions they take."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import (
    ATTENTION_REGISTRY,
    AttentionContext,
    AttentionFunction,
    attention_class,
    make_attention,
    read_options,
)
from fairseq_csp.modules.lengths import SequenceLengths


class Encoder(nn.Module):
    """Base class of encoders: from a batch of rows to one vector each.

    A subclass is built from the model's configuration and the dictionary of the source (None for
    images).

    Attributes:
        takes: the kinds of attention functions that it can take.
        positions_first: whether its ``layers`` map (positions, batch, channels); those of the
            others map (batch, channels, positions).
    """

    takes: ClassVar[tuple[type[AttentionFunction], ...]] = ()
    positions_first: ClassVar[bool] = False

    @classmethod
    def own_attention(cls, cfg: Any) -> str | None:
        """Return the name of the attention function where ``--attention`` is not given."""
        return None

    @classmethod
    def vector_dim(cls, cfg: Any) -> int:
        """Return the channels of an encoded row."""
        return cfg.encoder_embed_dim

    @property
    def packable(self) -> bool:
        """Whether it takes rows that lie end to end, ``PackedLengths``, with the same result."""
        return False

    def attention_packs(self) -> bool:
        """Return whether every attention function of the encoder takes such rows."""
        functions = (part for part in self.modules() if isinstance(part, AttentionFunction))
        return all(function.packable for function in functions)

    def forward(self, source: Tensor, lengths: SequenceLengths) -> Tensor:
        """Encode each row to a vector.

        Args:
            source: (batch, positions), symbols (int64) or pixels (floating).
            lengths: valid positions of each row.

        Returns:
            (batch, channels), float32 or wider; of packed rows one for each.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Family:
    """A family of encoders.

    Attributes:
        name: value of ``--layer-type``.
        encoder: the class.
        options: dataclass of the flags that the family has besides the shared ones; two families
            may have flags of one name if their defaults are the same.
        architectures: of each named architecture the values that differ from the flags' defaults.
    """

    name: str
    encoder: type[Encoder]
    options: type
    architectures: dict[str, dict[str, Any]]


FAMILY_REGISTRY: dict[str, Family] = {}
# called with the family after each registration
after_registration: list[Callable[[Family], None]] = []


def register_family(
    name: str, *, options: type, architectures: dict[str, dict[str, Any]]
) -> Callable[[type[Encoder]], type[Encoder]]:
    """Register an encoder as a family.

    Args:
        name: the name; that of the file in which the class stands.
        options: dataclass of its own flags.
        architectures: its named architectures.

    Raises:
        ValueError: the name or that of an architecture is taken, or it is not the file's.
    """

    def register(cls: type[Encoder]) -> type[Encoder]:
        taken = {arch for other in FAMILY_REGISTRY.values() for arch in other.architectures}
        if name in FAMILY_REGISTRY or taken & set(architectures):
            raise ValueError(f"a family or architecture of {name!r} is registered already")
        if cls.__module__.rpartition(".")[2] not in (name, "__main__"):
            raise ValueError(f"{cls.__name__} is registered as {name!r}: name its file {name}.py")
        FAMILY_REGISTRY[name] = Family(name, cls, options, architectures)
        for function in after_registration:
            function(FAMILY_REGISTRY[name])
        return cls

    return register


def family(name: str) -> Family:
    """Look up a family.

    Raises:
        UserError: there is none of that name.
    """
    name = str(name)
    if name not in FAMILY_REGISTRY:
        raise UserError(
            f"--layer-type is {name!r}; it must be one of {', '.join(sorted(FAMILY_REGISTRY))}"
        )
    return FAMILY_REGISTRY[name]


def attention_of(cfg: Any) -> type[AttentionFunction] | None:
    """Return the attention function of a model; None for a family without one.

    Raises:
        UserError: there is none of that name, or the family cannot take it.
    """
    member = family(cfg.layer_type)
    name = cfg.attention or member.encoder.own_attention(cfg)
    if name is None:
        return None
    cls = attention_class(name)
    if not can_take(member, cls):
        others = [other for other, cls in ATTENTION_REGISTRY.items() if can_take(member, cls)]
        raise UserError(
            f"--attention {name} cannot be used in {member.name}; "
            + (
                f"it takes {', '.join(sorted(others))}"
                if others
                else "it has no attention: leave the flag out"
            )
        )
    return cls


def can_take(member: Family, cls: type[AttentionFunction]) -> bool:
    """Whether a family can take an attention function."""
    named = cls.families is None or member.name in cls.families
    return named and issubclass(cls, member.encoder.takes)


def attention_options(cfg: Any, cls: type[AttentionFunction]) -> dict[str, Any]:
    """Return the options of an attention function that a configuration holds."""
    return {
        item.name: getattr(cfg, option_key(cls, item), item.default)
        for item in dataclasses.fields(cls.options_type)
    }


def option_key(cls: type[AttentionFunction], item: dataclasses.Field) -> str:
    """Return the name in a configuration of an attention function's option."""
    return f"{cls.name}_{item.name.rstrip('_')}"


def build_encoder_attention(
    cfg: Any, context: AttentionContext, *, carries: bool = False
) -> AttentionFunction:
    """Build the attention function of one layer.

    Args:
        cfg: the model's configuration.
        context: where the function stands.
        carries: whether the encoder carries a second stream for those that can have one.

    Raises:
        UserError: the family cannot take it, or an option is bad.
    """
    cls = attention_of(cfg)
    assert cls is not None, f"{cfg.layer_type} has no attention function"
    options = attention_options(cfg, cls)
    if carries and cls.carried is not None:
        return cls.carried(context, read_options(cls.options_type, cls.name, options))
    return make_attention(cls.name, context, options)
