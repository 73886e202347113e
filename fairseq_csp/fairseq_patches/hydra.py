"""``fairseq-hydra-train`` builds the architecture that it is told, of checked flags.

fairseq gives what a configuration does not set the default of all architectures, whichever is
named. And hydra prints a traceback for an error that is a sentence.
"""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import fields

from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from hydra._internal import utils as hydra_utils
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, open_dict

from fairseq_csp.errors import UserError
from fairseq_csp.fairseq_patches import is_fairseqs, replaces_in_training
from fairseq_csp.fairseq_patches.flag_values import check

GROUPS = (
    *("common", "dataset", "optimization", "checkpoint", "distributed_training"),
    *("task", "model", "criterion", "optimizer", "lr_scheduler"),
)


@replaces_in_training("add_defaults")
def add_defaults(cfg: DictConfig) -> None:
    """Complete a configuration, that of fairseq-train or one written by hand.

    Args:
        cfg: the configuration, which is changed.

    Raises:
        UserError: a value is not what it may be.
    """
    _add_architecture(cfg)
    add_defaults.original(cfg)
    values = {}
    for group in GROUPS:
        if isinstance(cfg.get(group), DictConfig):
            values.update(cfg[group])
    names = {group: getattr(cfg.get(group), "_name", None) for group in GROUPS}
    check({**values, **names, "arch": names["model"]})


def _add_architecture(cfg: DictConfig) -> None:
    """Set what the architecture sets, where the configuration does not."""
    model = cfg.get("model")
    name = model.get("_name") if isinstance(model, DictConfig) else None
    flags = MODEL_DATACLASS_REGISTRY.get(ARCH_MODEL_NAME_REGISTRY.get(name))
    if flags is None or is_fairseqs(flags):
        return
    args = Namespace(**model)
    ARCH_CONFIG_REGISTRY[name](args)
    with open_dict(cfg):
        _set_missing(model, flags, vars(args))
        task = cfg.get("task")
        if isinstance(task, DictConfig) and task.get("_name") in TASK_DATACLASS_REGISTRY:
            # on the command line one flag sets both
            _set_missing(task, TASK_DATACLASS_REGISTRY[task._name], model)


def _set_missing(group: DictConfig, flags: type, values: Mapping[str, object]) -> None:
    for field in fields(flags):
        if field.name not in group and field.name in values:
            group[field.name] = values[field.name]


def _end_in_a_sentence() -> None:
    """Let hydra end with the sentence of a user's error, as the version in use passes errors on."""
    given = getattr(JobReturn, "return_value", None)
    if isinstance(given, property):

        def told(job: JobReturn) -> object:
            if isinstance(job._return_value, UserError):
                raise SystemExit(str(job._return_value))
            return given.fget(job)

        JobReturn.return_value = property(told, given.fset)
        return
    # before 1.1 (on Python 3.10) errors are printed where they arrive
    printed = hydra_utils.print_exception

    def print_exception(*arguments: object, value: Exception, **others: object) -> None:
        if isinstance(value, UserError):
            raise SystemExit(str(value))
        printed(*arguments, value=value, **others)

    hydra_utils.print_exception = print_exception


_end_in_a_sentence()
