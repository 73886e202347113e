"""Learning rate with a warm-up of any power, then linear decay."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II

from fairseq_csp.errors import UserError


@dataclass
class LinearDecayConfig(FairseqDataclass):
    """Flags of the schedule."""

    warmup_updates: int = field(default=0, metadata={"help": "updates until the learning rate"})
    warmup_power: float = field(default=1.0, metadata={"help": "power the warm-up rises with"})
    warmup_init_lr: float = field(
        default=-1.0, metadata={"help": "learning rate of update 0 (negative: 0)"}
    )
    end_learning_rate: float = field(default=0.0, metadata={"help": "learning rate at the end"})
    total_num_update: Optional[float] = field(  # noqa: UP045 (fairseq reads the annotation)
        default=None,
        metadata={"help": "update at which the end is reached (default: that of --max-update)"},
    )
    max_update: int = II("optimization.max_update")
    lr: list[float] = II("optimization.lr")


@register_lr_scheduler("linear_decay", dataclass=LinearDecayConfig)
class LinearDecaySchedule(FairseqLRScheduler):
    """``init + (lr - init) * (t/W)^power`` up to update W, then a line down to the end value.

    Raises:
        UserError: the decay would end before the warm-up does, or there is more than one rate.
    """

    def __init__(self, cfg: LinearDecayConfig, optimizer: FairseqOptimizer) -> None:
        super().__init__(cfg, optimizer)
        if isinstance(cfg.lr, Collection) and len(cfg.lr) > 1:
            raise UserError(f"--lr is {list(cfg.lr)}; linear_decay takes one learning rate")
        self.lr = cfg.lr[0] if isinstance(cfg.lr, Collection) else cfg.lr
        self.total = cfg.max_update if cfg.total_num_update is None else cfg.total_num_update
        if not self.total > cfg.warmup_updates:
            raise UserError(
                f"--total-num-update (or --max-update in its place) is {self.total:g}; it must be "
                f"above --warmup-updates {cfg.warmup_updates}"
            )
        self.step_update(0)

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state; that of published checkpoints does not name the best loss."""
        self.best = state_dict.get("best")

    def step_update(self, num_updates: int) -> float:
        """Set and return the learning rate after ``num_updates`` updates."""
        warmup, total, end = self.cfg.warmup_updates, self.total, self.cfg.end_learning_rate
        if warmup > 0 and num_updates <= warmup:
            first = max(self.cfg.warmup_init_lr, 0.0)
            rate = first + (self.lr - first) * (num_updates / warmup) ** self.cfg.warmup_power
        elif num_updates >= total:
            rate = end
        else:
            rate = end + (self.lr - end) * (total - num_updates) / (total - warmup)
        self.optimizer.set_lr(rate)
        return self.optimizer.get_lr()
