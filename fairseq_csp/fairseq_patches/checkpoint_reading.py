"""A checkpoint runs no code: of what it names only classes from here are built, of checked values.

fairseq builds whatever task, model and criterion of its own a checkpoint names, some of which
evaluate text of the checkpoint; it replaces ``${...}`` in its text by variables of the environment;
and it lets the errors of damaged files pass.
"""

import os
import typing
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, fields
from enum import Enum

import torch
from fairseq import checkpoint_utils, tasks
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.configs import (
    CheckpointConfig,
    CommonConfig,
    DatasetConfig,
    OptimizationConfig,
)
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from fairseq_csp import checkpoints
from fairseq_csp.errors import UserError
from fairseq_csp.fairseq_patches import is_fairseqs, replaces
from fairseq_csp.flags import check_values, named

# what is built from a checkpoint, and its flag
BUILT = {"task": "task", "model": "arch", "criterion": "criterion"}
# what is only compared with a command's
COMPARED = {"optimizer": "optimizer", "lr_scheduler": "lr_scheduler"}
GENERAL = {
    "common": CommonConfig,
    "dataset": DatasetConfig,
    "optimization": OptimizationConfig,
    "checkpoint": CheckpointConfig,
}


@replaces(checkpoint_utils, "load_checkpoint_to_cpu")
def read(
    path: str, arg_overrides: Mapping[str, object] | None = None, load_on_all_ranks: bool = False
) -> dict:
    """Read a checkpoint.

    Args:
        path: where.
        arg_overrides: flags that replace those of the checkpoint.
        load_on_all_ranks: passed by fairseq; each process reads by itself.

    Returns:
        What :func:`fairseq_csp.checkpoints.load` gives, with ``cfg`` made anew of what is
        registered here.

    Raises:
        UserError: it is not a whole checkpoint, or not one of a model from here.
    """
    state = checkpoints.load(path)
    try:
        state["cfg"] = configuration(state)
    except UserError as error:
        raise UserError(f"{path} is refused: {error}") from error
    # fairseq would convert the flags of the published code anew
    state["args"] = None
    if arg_overrides:
        overwrite_args_by_name(state["cfg"], dict(arg_overrides))
    return state


@replaces(checkpoint_utils, "load_model_ensemble_and_task")
def load_models(
    paths: list[str | None],
    arg_overrides: Mapping[str, object] | None = None,
    task: tasks.FairseqTask | None = None,
    strict: bool = True,
    suffix: str = "",
    num_shards: int = 1,
    state: dict | None = None,
) -> tuple[list[nn.Module], DictConfig, tasks.FairseqTask]:
    """Build the models of checkpoints.

    Args:
        paths: where; None is what fairseq makes of a ``--path`` that was not given.
        arg_overrides: flags that replace those of the checkpoint.
        task: that of the models; the first checkpoint's when None.
        strict: each weight must be there.
        suffix: passed by fairseq for parts of a model.
        num_shards: passed by fairseq for parts of a model.
        state: of the one checkpoint, where it has been read.

    Returns:
        The models, the configuration of the last and their task.

    Raises:
        UserError: a checkpoint is not there, is refused by :func:`read`, or does not fit its flags.
    """
    if num_shards != 1 or suffix:
        raise UserError("a checkpoint is one file here: leave out --checkpoint-suffix and shards")
    models = []
    for path in paths:
        if path is None or not os.path.exists(path):
            raise UserError(f"--path must name a checkpoint that is there, not {path}")
        state = state or read(path, arg_overrides)
        cfg = state["cfg"]
        if task is None and OmegaConf.is_missing(cfg.task, "data"):
            raise UserError(f"{path} does not name its data: give the directory")
        task = task or tasks.setup_task(cfg.task, from_checkpoint=True)
        task.load_state_dict(state["task_state"])
        _compare_shapes(task, cfg, state["model"], path)
        model = task.build_model(cfg.model, from_checkpoint=True)
        model.set_num_updates(state["optimizer_history"][-1]["num_updates"])
        model.load_state_dict(state["model"], strict=strict, model_cfg=cfg.model)
        models.append(model)
        state = None
    return models, cfg, task


def _compare_shapes(
    task: tasks.FairseqTask, cfg: DictConfig, weights: Mapping[str, torch.Tensor], path: str
) -> None:
    """Compare the weights with those that the flags ask for, before memory is taken for them."""
    try:
        outline = getattr(task, "outline", lambda cfg: None)(cfg.model)
    except UserError as error:
        raise UserError(f"{path} is refused: {error}") from error
    if outline is not None:
        try:
            with warnings.catch_warnings():
                # that the outline has no numbers
                warnings.filterwarnings("ignore", ".*meta parameter")
                outline.load_state_dict(dict(weights), strict=True, model_cfg=cfg.model)
        except UserError as error:
            raise UserError(f"{path} is refused: its flags and weights differ: {error}") from error
        for name, own in outline.state_dict().items():
            found = weights.get(name, own)
            if found.is_floating_point() != own.is_floating_point():
                raise UserError(f"{path} is refused: {name} is {found.dtype}, not {own.dtype}")


def configuration(state: dict) -> DictConfig:
    """Make a configuration of what a checkpoint says and is known here.

    Args:
        state: what :func:`fairseq_csp.checkpoints.load` gives.

    Raises:
        UserError: the task, model or criterion is not from here, or has a value of another type or
            out of its range.
    """
    flat = vars(state["args"]) if state["args"] is not None else None
    groups: dict[str, dict] = {}
    for group, kind in GENERAL.items():
        values = flat if flat is not None else _group(state, group)
        groups[group] = _values(kind, values, strict=False)
    groups["common"].setdefault("seed", 1)
    for group, flag in {**BUILT, **COMPARED}.items():
        values = flat if flat is not None else _group(state, group)
        name = values.get(flag if flat is not None else "_name")
        kind = _registered(group, name)
        if kind is None:
            if group in BUILT:
                raise UserError(
                    f"its {named(flag)} is {name!r}, but of a checkpoint only a {group} of this "
                    "project is built"
                )
            continue
        groups[group] = {**_values(kind, values, strict=group in BUILT), "_name": name}
    for group in BUILT:
        check_values(groups[group])
    cfg = OmegaConf.create(groups)
    # the defaults of some refer to other groups
    with open_dict(cfg):
        for group in BUILT:
            cfg[group] = OmegaConf.to_container(cfg[group], resolve=True)
    return cfg


def _group(state: dict, group: str) -> dict:
    values = state["cfg"].get(group)
    return values if isinstance(values, dict) else {}


def _registered(group: str, name: object) -> type[FairseqDataclass] | None:
    """Return the flags of a registered name; of what is built, only of classes from here."""
    if not isinstance(name, str):
        return None
    if group == "task":
        found, flags = TASK_REGISTRY.get(name), TASK_DATACLASS_REGISTRY.get(name)
    elif group == "model":
        found = ARCH_MODEL_REGISTRY.get(name)
        flags = MODEL_DATACLASS_REGISTRY.get(ARCH_MODEL_NAME_REGISTRY.get(name))
    else:
        registry = REGISTRIES[group]
        found, flags = registry["registry"].get(name), registry["dataclass_registry"].get(name)
    if found is None or (group in BUILT and is_fairseqs(found)):
        return None
    return flags


def _values(kind: type[FairseqDataclass], given: Mapping[str, object], strict: bool) -> dict:
    """Take the values of a group's fields, with their defaults.

    Raises:
        UserError: one has another type than its field, and ``strict``.
    """
    types = typing.get_type_hints(kind)
    values = {}
    for field in fields(kind):
        default = field.default_factory() if field.default is MISSING else field.default
        values[field.name] = default.value if isinstance(default, Enum) else default
        if field.name not in given:
            continue
        value = given[field.name]
        if types[field.name] is str and type(value) is int:
            # a number in earlier code, in the place of which a word may stand now
            value = str(value)
        if isinstance(value, str) and (value == "???" or "${" in value):
            if strict:
                raise UserError(f"its {named(field.name)} is {value!r}, which would be replaced")
        elif _fits(value, types[field.name]):
            values[field.name] = value
        elif strict:
            raise UserError(
                f"its {named(field.name)} is {value!r}, which is no {_name(types[field.name])}"
            )
    return values


def _fits(value: object, kind: object) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is typing.Any or kind is object:
        if isinstance(value, list | tuple):
            return all(_fits(one, kind) for one in value)
        return value is None or isinstance(value, bool | int | float | str)
    if type(None) in inner:
        return value is None or any(_fits(value, one) for one in inner if one is not type(None))
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(_fits(one, inner[0]) for one in value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return isinstance(value, str) and value in [member.value for member in kind]
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _name(kind: object) -> str:
    return getattr(kind, "__name__", None) or str(kind).replace("typing.", "")
