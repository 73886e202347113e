"""The flags of all LRA models: the shared ones here, and those of families and functions.

Families and attention functions declare flags of their own where they are registered.
:func:`config_class` puts all that are registered into one dataclass, as fairseq wants it.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.utils import get_available_activation_fns
from hydra.core.config_store import ConfigStore

import fairseq_csp.models.families  # noqa: F401 (registers them)
from fairseq_csp.errors import UserError
from fairseq_csp.models.family import FAMILY_REGISTRY, attention_of, family, option_key
from fairseq_csp.modules.attention import ATTENTION_REGISTRY
from fairseq_csp.modules.attention._base import ON_OFF

INPUTS = ChoiceEnum(["text", "image"])
POOLINGS = ChoiceEnum(["mp", "cls"])
ACTIVATIONS = ChoiceEnum([*get_available_activation_fns(), "silu"])


def _flag(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass
class SharedConfig(FairseqDataclass):
    """Flags that every family knows; an architecture gives those it names other defaults."""

    layer_type: str = _flag("mega", "family of encoder layers")
    input_type: INPUTS = _flag(  # type: ignore[valid-type]
        "text", "symbols or real-valued pixels"
    )
    attention: Optional[str] = _flag(  # noqa: UP045 (fairseq reads the annotation)
        None, "what mixes the positions, by its registered name (default: the architecture's own)"
    )
    encoder_layers: int = _flag(6, "number of layers")
    encoder_embed_dim: int = _flag(128, "model channels")
    encoder_ffn_embed_dim: int = _flag(256, "channels inside a feed-forward block")
    max_positions: int = _flag(4002, "most positions of a row")
    cuda_graphs: bool = _flag(
        False, "on a GPU: train by CUDA graphs, one for each shape of a batch; takes effect there"
    )
    dropout: float = _flag(0.1, "probability of dropping a model channel")
    act_dropout: float = _flag(0.0, "probability of dropping a hidden number or a value")
    apply_bert_init: bool = _flag(False, "initialise linear maps and symbols as BERT does")
    sen_rep_type: POOLINGS = _flag(  # type: ignore[valid-type]
        "cls", "a row's vector: mean over positions, or first position"
    )
    classifier_layers: int = _flag(1, "hidden layers of the classifier")
    classifier_in_dim: Optional[int] = _flag(  # noqa: UP045
        None, "channels into the classifier (default: what the encoder gives)"
    )
    classifier_out_dim: int = _flag(256, "channels of the classifier's hidden layers")
    classifier_activation_fn: ACTIVATIONS = _flag(  # type: ignore[valid-type]
        "gelu", "activation of the classifier"
    )
    sentence_class_num: int = _flag(2, "number of classes")
    keep_padding: bool = _flag(
        False, "encode a padded batch as it is, neither packed nor in buckets of similar lengths"
    )


def config_class() -> type[SharedConfig]:
    """Return the configuration with the flags of all that is registered by now."""
    registered = (tuple(FAMILY_REGISTRY), tuple(ATTENTION_REGISTRY))
    if registered not in _classes:
        _classes.clear()
        _classes[registered] = _make_class()
    return _classes[registered]


_classes: dict[tuple, type[SharedConfig]] = {}


def _make_class() -> type[SharedConfig]:
    flags: dict[str, tuple[Any, dataclasses.Field]] = {}
    for member in FAMILY_REGISTRY.values():
        hints = typing.get_type_hints(member.options)
        for item in dataclasses.fields(member.options):
            flags.setdefault(item.name, _fairseq_field(item, hints[item.name]))
    flags |= attention_flags()
    return dataclasses.make_dataclass(
        "LRAConfig",
        [(name, *flag) for name, flag in flags.items()],
        bases=(SharedConfig,),
        namespace={"__module__": __name__},
    )


def attention_flags() -> dict[str, tuple[Any, dataclasses.Field]]:
    """Return type and field, by name, of the flags of the attention functions."""
    flags = {}
    for cls in ATTENTION_REGISTRY.values():
        hints = typing.get_type_hints(cls.options_type)
        for item in dataclasses.fields(cls.options_type):
            flags[option_key(cls, item)] = _fairseq_field(item, hints[item.name])
    return flags


def renew_flags(model: type, name: str, config: type) -> None:
    """Tell fairseq of a model's flags anew, with those of what was registered since.

    Args:
        model: the class.
        name: the name it is registered under.
        config: the dataclass of its flags.
    """
    model.__dataclass = MODEL_DATACLASS_REGISTRY[name] = config
    node = config()
    node._name = name
    ConfigStore.instance().store(name=name, group="model", node=node, provider="fairseq")


def _fairseq_field(item: dataclasses.Field, hint: Any) -> tuple[Any, dataclasses.Field]:
    """Return type and field of a flag in the forms that fairseq reads."""
    default, choices = item.default, item.metadata.get("choices")
    optional = isinstance(hint, types.UnionType) and type(None) in hint.__args__
    if optional:
        hint = next(kind for kind in hint.__args__ if kind is not type(None))
    if choices:
        hint = ChoiceEnum(list(choices))
    elif hint is bool and default is True:
        # fairseq's own switch would turn it off
        hint, default = ChoiceEnum(list(ON_OFF)), "on"
    field: Any = dataclasses.field(default=default, metadata={"help": item.metadata["help"]})
    kind: Any = Optional[hint] if optional else hint  # noqa: UP045
    return kind, field


def plain_config(cfg: Any, config: type | None = None) -> Any:
    """Return the values of a configuration by themselves, so that a model can be pickled.

    Args:
        cfg: of the class, or what omegaconf makes of one.
        config: the class; None: that of :func:`config_class`.
    """
    values = {
        item.name: getattr(cfg, item.name, None)
        for item in dataclasses.fields(config or config_class())
    }
    return types.SimpleNamespace(
        **{name: getattr(value, "value", value) for name, value in values.items()}
    )


def flags_with_effect(cfg: Any) -> set[str]:
    """Return the names of the flags that a model is built by.

    Args:
        cfg: the model's configuration.

    Raises:
        UserError: its family or attention function is unknown, or they do not go together.
    """
    member, cls = family(cfg.layer_type), attention_of(cfg)
    used = {item.name for item in dataclasses.fields(SharedConfig)}
    for item in dataclasses.fields(member.options):
        needs = item.metadata.get("needs")
        if needs is None or (cls is not None and getattr(cls, f"uses_{needs}")):
            used.add(item.name)
    if cfg.attention is not None:
        used.discard("attention_activation_fn")
    if cls is not None:
        used |= {option_key(cls, item) for item in dataclasses.fields(cls.options_type)}
    return used


def flags_without_effect(cfg: Any) -> list[str]:
    """Return the flags with another value than by default that change nothing in a model.

    Args:
        cfg: the model's configuration.
    """
    used, defaults = flags_with_effect(cfg), _defaults_of(cfg)
    return [
        "--" + item.name.replace("_", "-")
        for item in dataclasses.fields(config_class())
        if item.name not in used
        and getattr(cfg, item.name, defaults[item.name]) != defaults[item.name]
    ]


def _defaults_of(cfg: Any) -> dict[str, Any]:
    """Return the values of all flags of the architecture of a configuration."""
    named = {item.name: item.default for item in dataclasses.fields(config_class())}
    arch = str(getattr(cfg, "_name", None))
    architectures = family(cfg.layer_type).architectures
    return named | (architecture_values(arch, {}) if arch in architectures else {})


def architecture_config(arch: str, **given: Any) -> SharedConfig:
    """Return the configuration of an architecture.

    Args:
        arch: its name.
        **given: values of flags that win over the architecture's.

    Raises:
        UserError: there is no architecture of that name.
    """
    return config_class()(**(given | architecture_values(arch, given)))


def architecture_values(arch: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that an architecture gives the flags that are not given.

    Args:
        arch: its name.
        given: values of flags by name.

    Raises:
        UserError: there is none of that name.
    """
    for member in FAMILY_REGISTRY.values():
        if arch in member.architectures:
            values = {"layer_type": member.name} | member.architectures[arch]
            if "encoder_hidden_dim" in values:
                # the feed-forward blocks are as wide as the values unless told otherwise
                width = given.get("encoder_hidden_dim", values["encoder_hidden_dim"])
                values.setdefault("encoder_ffn_embed_dim", width)
            return {name: value for name, value in values.items() if name not in given}
    known = [name for member in FAMILY_REGISTRY.values() for name in member.architectures]
    raise UserError(f"--arch is {arch!r}; it must be one of {', '.join(known)}")
