"""``--patience`` is counted over all starts of a run, and a run that has stopped early has ended.

fairseq counts anew at each start, so that a run that has stopped early trains on when it is started
again.
"""

from dataclasses import asdict, dataclass

from fairseq.dataclass.configs import FairseqConfig

from fairseq_csp.fairseq_patches import replaces_in_training


@dataclass
class Count:
    """Validations since the best.

    Attributes:
        best: the best score; None before the first validation.
        runs: validations since then.
    """

    best: float | None = None
    runs: int = 0


_count = Count()


def state() -> dict:
    """Return what a checkpoint keeps."""
    return asdict(_count)


def restore(values: dict) -> None:
    """Take up what a checkpoint has kept, or begin to count where it has kept nothing."""
    best, runs = values.get("best"), values.get("runs", 0)
    _count.best = best if isinstance(best, int | float) else None
    _count.runs = runs if type(runs) is int else 0


def has_stopped(patience: int) -> bool:
    """Tell whether the run has waited that many validations for a better one."""
    return 0 < patience <= _count.runs


@replaces_in_training("should_stop_early")
def should_stop_early(cfg: FairseqConfig, valid_loss: float | None) -> bool:
    """Count a validation; tell whether it is one too many without a better score.

    Args:
        cfg: the configuration.
        valid_loss: the score; None where nothing was validated.
    """
    patience = cfg.checkpoint.patience
    if valid_loss is None or patience <= 0:
        return False
    highest = cfg.checkpoint.maximize_best_checkpoint_metric
    if _count.best is None or (valid_loss > _count.best if highest else valid_loss < _count.best):
        _count.best, _count.runs = valid_loss, 0
        return False
    _count.runs += 1
    return has_stopped(patience)
