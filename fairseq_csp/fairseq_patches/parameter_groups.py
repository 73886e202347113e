"""Parameters that name a learning rate and weight decay of their own get them.

fairseq gives an optimizer one list of parameters and sets one learning rate for all. A parameter
with an attribute ``optim_overrides`` (``lr`` and ``weight_decay``, which fairseq copies where it
trains copies in float32) stands in a group of its own here; its learning rate follows the schedule
in proportion.
"""

from typing import Any

import fairseq.optim
from fairseq.optim import FP16Optimizer
from fairseq.optim.fairseq_optimizer import FairseqOptimizer

from fairseq_csp.errors import UserError
from fairseq_csp.fairseq_patches import replaces


@replaces(fairseq.optim, "build_optimizer")
def build_optimizer(cfg: Any, params: Any, *arguments: Any, **options: Any) -> FairseqOptimizer:
    """Build an optimizer, with groups for the parameters that have overrides.

    Args:
        cfg: the optimizer's configuration.
        params: the parameters.
        arguments: as fairseq's.
        options: as fairseq's.
    """
    optimizer = build_optimizer.original(cfg, params, *arguments, **options)
    for group in list(optimizer.param_groups):
        own: dict[tuple[float, float], list] = {}
        for parameter in group["params"]:
            if overrides := getattr(parameter, "optim_overrides", None):
                key = (overrides["lr"], overrides["weight_decay"])
                own.setdefault(key, []).append(parameter)
        if own:
            apart = {id(parameter) for parameters in own.values() for parameter in parameters}
            group["params"] = [p for p in group["params"] if id(p) not in apart]
            for (_, weight_decay), parameters in own.items():
                optimizer.param_groups.append(
                    group | {"params": parameters, "weight_decay": weight_decay}
                )
    return optimizer


@replaces(FairseqOptimizer, "set_lr")
def set_lr(self: FairseqOptimizer, lr: float) -> None:
    """Set the learning rate of the schedule, in proportion where a group has its own.

    Args:
        self: the optimizer.
        lr: the schedule's.
    """
    for group in self.param_groups:
        overrides = getattr(group["params"][0], "optim_overrides", None)
        group["lr"] = lr * overrides["lr"] / self.cfg.lr[0] if overrides else lr


@replaces(FairseqOptimizer, "load_state_dict")
def load_state_dict(
    self: FairseqOptimizer, state_dict: dict[str, Any], optimizer_overrides: Any = None
) -> None:
    """Restore an optimizer.

    Args:
        self: the optimizer.
        state_dict: its state.
        optimizer_overrides: as fairseq's.

    Raises:
        UserError: it has another number of groups.
    """
    there = len(state_dict.get("param_groups", self.param_groups))
    if there != len(self.param_groups):
        raise UserError(
            f"the checkpoint's optimizer has {there} groups of parameters and this run's "
            f"{len(self.param_groups)}: give --s4d-lr as it was trained with, or --reset-optimizer"
        )
    load_state_dict.original(self, state_dict, optimizer_overrides)


@replaces(FP16Optimizer, "build_optimizer")
def build_fp16_optimizer(cfg: Any, params: Any, **options: Any) -> FP16Optimizer:
    """Build an optimizer of float16 parameters.

    Args:
        cfg: the configuration of the run.
        params: the parameters.
        options: as fairseq's.

    Raises:
        UserError: all parameters would be one vector, without groups.
    """
    flat = not (cfg.common.bf16 or cfg.common.fp16_no_flatten_grads)
    if flat and any(hasattr(parameter, "optim_overrides") for parameter in params):
        raise UserError("--s4d-lr with --fp16 needs --fp16-no-flatten-grads")
    return build_fp16_optimizer.original(cfg, params, **options)
