"""The flags of a run that tell it from others: all that have an effect, with their values.

A flag that the run lacks, because it was made before the flag was there, has its default; the
options of attention functions and families that the run does not use are left out. So runs of one
configuration are alike whenever they were made.
"""

import contextlib
import dataclasses
import re
from argparse import Namespace
from typing import Any

from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import MISSING

import fairseq_csp.plugin  # noqa: F401 (registers what the dataclasses are looked up by)
from fairseq_csp.errors import UserError
from fairseq_csp.models.config import config_class, flags_with_effect
from fairseq_csp.models.family import FAMILY_REGISTRY, option_key
from fairseq_csp.models.vit import SOFTMAX
from fairseq_csp.modules.attention import ATTENTION_REGISTRY
from fairseq_csp.report.records import MOST, Fields, OddValueError

# where two runs of a cell may differ; the others are paths, logging, and what follows from these.
# The model's value of a flag comes last and counts
_GROUPS = ("task", "optimizer", "lr_scheduler", "optimization", "model")
_KEYS = {
    "common": ("fp16", "bf16", "amp", "memory_efficient_fp16", "memory_efficient_bf16"),
    "dataset": ("batch_size", "max_tokens", "train_subset"),
    "distributed_training": ("distributed_world_size",),
}
# told by the cell itself, or not by what the run computes
_LEFT_OUT = {"data", "seed", "attention", "attention_activation_fn", "tpu"}
# kinds of values that a flag can have; of a list its members
_FLAG_VALUES = (str, int, float, type(None))
# a default that is another flag's value
_REFERENCE = re.compile(r"\$\{(\w+)\.(\w+)\}")


def settings(config: Fields) -> dict[str, str]:
    """Return the flags that tell two runs of a cell apart, each with its value.

    Args:
        config: fairseq's configuration by group, as the run kept it.

    Raises:
        OddValueError: a flag has a value that no flag can have.
    """
    found = {}
    for group in (*_KEYS, *_GROUPS):
        values = _with_defaults(group, config)
        if group == "model":
            values = _in_use(values, attention_name(config))
        for key, value in values.items():
            if key not in _LEFT_OUT and key in _KEYS.get(group, values):
                name = group if key == "_name" else key
                found[f"--{name.replace('_', '-')}"] = _shown(value)
    return found


def attention_name(config: Fields) -> str:
    """Return the name of the attention function of a run; ``none`` for a model without one.

    Raises:
        OddValueError: it is no text.
    """
    model = config.fields("model")
    given, family = model.text("attention"), model.text("layer_type")
    if given:
        return given
    if family is None:
        # a model that is no LRA classifier, or nothing is known
        return SOFTMAX if model.values else "?"
    if family not in FAMILY_REGISTRY:
        return "?"
    values = Namespace(**_with_defaults("model", config))
    return FAMILY_REGISTRY[family].encoder.own_attention(values) or "none"


def _with_defaults(group: str, config: Fields) -> dict[str, Any]:
    """Return the flags of a group, the defaults of those that it lacks included."""
    fields = config.fields(group)
    name = fields.text("_name")
    given = dict(fields.values)
    if group == "model" and name in ARCH_CONFIG_REGISTRY:
        # an architecture gives values to what is not given
        values = Namespace(**given)
        ARCH_CONFIG_REGISTRY[name](values)
        defaults = _defaults(MODEL_DATACLASS_REGISTRY.get(ARCH_MODEL_NAME_REGISTRY[name]))
        given |= {key: value for key, value in vars(values).items() if key in defaults}
    elif group == "task":
        defaults = _defaults(TASK_DATACLASS_REGISTRY.get(name))
    elif group in REGISTRIES:
        defaults = _defaults(REGISTRIES[group]["dataclass_registry"].get(name))
    else:
        known = {item.name: item.type for item in dataclasses.fields(FairseqConfig)}
        defaults = _defaults(known[group] if given and group != "model" else None)
    found = {}
    for key, default in (defaults | given).items():
        reference = _REFERENCE.fullmatch(default) if isinstance(default, str) else None
        if reference is None:
            found[key] = default
        elif reference[2] in config.fields(reference[1]).values:
            found[key] = config.fields(reference[1]).values[reference[2]]
    return found


def _defaults(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    values = config()
    items = [(item.name, getattr(values, item.name)) for item in dataclasses.fields(config)]
    return {name: value for name, value in items if value != MISSING}


def _in_use(values: dict[str, Any], attention: str) -> dict[str, Any]:
    """Leave out the flags of a model that have no effect in it."""
    unused = {
        option_key(cls, item)
        for cls in ATTENTION_REGISTRY.values()
        for item in dataclasses.fields(cls.options_type)
        if cls.name != attention
    }
    with contextlib.suppress(AttributeError, UserError):
        # a model of families, if all that it is made of is known here
        known = {item.name for item in dataclasses.fields(config_class())}
        unused |= known - flags_with_effect(Namespace(**values))
    return {key: value for key, value in values.items() if key not in unused}


def _shown(value: Any) -> str:
    """Return a flag's value as on a command line.

    Raises:
        OddValueError: no flag has such a value.
    """
    values = value if isinstance(value, list | tuple) else [value]
    if len(values) > 100 or not all(isinstance(each, _FLAG_VALUES) for each in values):
        raise OddValueError(f"a flag is a {type(value).__name__} that no flag can be")
    if any(isinstance(each, int) and abs(each) > MOST for each in values):
        raise OddValueError("a flag is a number too large")
    # 1.0 and 1 are one value
    return " ".join(
        str(int(each) if isinstance(each, float) and each.is_integer() else each) for each in values
    )
