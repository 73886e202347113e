"""Cross entropy and accuracy of a classification."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask
from torch import Tensor, nn

from fairseq_csp.modules.attention import auxiliary_loss


@dataclass
class LRACrossEntropyConfig(FairseqDataclass):
    """Flags of the loss."""

    label_smoothing: float = field(
        default=0.0,
        metadata={"help": "share of the target that training spreads evenly over all classes"},
    )


@register_criterion("lra_cross_entropy", dataclass=LRACrossEntropyConfig)
class LRACrossEntropyCriterion(FairseqCriterion):
    """Cross entropy averaged over examples; logged in bits, with the accuracy in percent.

    With label smoothing (arXiv 1512.00567, section 7) the training loss is that of the smoothed
    target; evaluation is without.

    Args:
        task: what it is the loss of.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).

    Attributes:
        metrics: what is logged of a validation, and whether it is best where it is highest.
    """

    metrics: ClassVar = {"loss": False, "accuracy": True}

    def __init__(self, task: FairseqTask, label_smoothing: float = 0.0) -> None:
        super().__init__(task)
        self.label_smoothing = label_smoothing

    def forward(
        self, model: BaseFairseqModel, sample: dict, reduce: bool = True
    ) -> tuple[Tensor, int, dict]:
        """Compute the loss of a batch.

        Args:
            model: called with ``sample["net_input"]``; gives logits (batch, classes). What
                its attention functions want added to the loss is, and is logged by itself.
            sample: ``target`` holds the classes, (batch,) or (batch, 1) int64.
            reduce: sum the loss over the batch.

        Returns:
            The loss in nats, summed or (batch,); the number of examples, which is the denominator
            of the gradient; and what to log.
        """
        logits = model(**sample["net_input"])
        target = sample["target"].view(-1)
        loss = F.cross_entropy(
            logits.float(),
            target,
            reduction="sum" if reduce else "none",
            label_smoothing=self.label_smoothing if getattr(model, "training", False) else 0.0,
        )
        examples = target.size(0)
        log = {
            "loss": loss.detach(),
            "ncorrect": (logits.argmax(1) == target).sum(),
            "ntokens": sample["ntokens"],
            "nsentences": examples,
            "sample_size": examples,
        }
        loss = self.add_auxiliary_loss(model, loss, log)
        return loss, examples, log

    @staticmethod
    def add_auxiliary_loss(model: Callable[..., Tensor], loss: Tensor, log: dict) -> Tensor:
        """Add what a model's attention functions want added, to the loss of each example.

        Args:
            model: after its forward pass; a plain function, as benchmarks have it, wants nothing.
            loss: summed or (batch,).
            log: what to log, with ``sample_size``; what is added is put into it.
        """
        auxiliary = auxiliary_loss(model) if isinstance(model, nn.Module) else None
        if auxiliary is None:
            return loss
        log["auxiliary_loss"] = auxiliary.detach() * log["sample_size"]
        return loss + auxiliary * (1 if loss.dim() else log["sample_size"])

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict]) -> None:
        """Log the mean loss and the accuracy of the outputs of all workers."""

        def total(key: str) -> float:
            # fairseq runs the loss of a dummy batch on workers that have run out of data, times 0
            return sum(float(log.get(key, 0)) for log in logging_outputs)

        examples = total("sample_size")
        if examples:
            metrics.log_scalar("loss", total("loss") / examples / math.log(2), examples, round=3)
            if any("auxiliary_loss" in log for log in logging_outputs):
                auxiliary = total("auxiliary_loss") / examples
                metrics.log_scalar("auxiliary_loss", auxiliary, examples, round=5)
            metrics.log_scalar("accuracy", 100 * total("ncorrect") / examples, examples, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Tell fairseq that workers' outputs may be added up."""
        return True
