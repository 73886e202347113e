"""Cross entropy of image classification: label smoothing, mixed images, top-1 and top-5."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from fairseq.criterions import register_criterion
from fairseq.logging import metrics as logged
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_csp.criterions.lra_cross_entropy import (
    LRACrossEntropyConfig,
    LRACrossEntropyCriterion,
)

TOP = 5


@register_criterion("image_cross_entropy", dataclass=LRACrossEntropyConfig)
class ImageCrossEntropyCriterion(LRACrossEntropyCriterion):
    """Cross entropy averaged over images; logged in bits, with top-1 and top-5 in percent.

    Args:
        task: the task.
        label_smoothing: share of the target that is spread over all classes (arXiv 1512.00567).
    """

    metrics: ClassVar = {**LRACrossEntropyCriterion.metrics, "top5": True}

    def forward(
        self, model: BaseFairseqModel, sample: dict, reduce: bool = True
    ) -> tuple[Tensor, int, dict]:
        """Compute the loss of a batch.

        Args:
            model: called with ``sample["net_input"]``; gives logits (batch, classes).
            sample: ``target`` (batch,) int64; where images are mixed ``other_target`` as well, and
                ``weight`` (batch,), the first one's share.
            reduce: sum the loss over the batch.

        Returns:
            The loss in nats, summed or (batch,); the number of images, which is the denominator
            of the gradient; and what to log.
        """
        logits = model(**sample["net_input"]).float()
        target = sample["target"]
        smoothing = self.label_smoothing if model.training else 0.0
        loss = F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
        if "weight" in sample:
            other = F.cross_entropy(
                logits, sample["other_target"], reduction="none", label_smoothing=smoothing
            )
            loss = torch.lerp(other, loss, sample["weight"].float())
        if reduce:
            loss = loss.sum()
        images = target.size(0)
        best = logits.topk(min(TOP, logits.size(1)), dim=1).indices == target[:, None]
        log = {
            "loss": loss.detach(),
            "ncorrect": (logits.argmax(1) == target).sum(),
            "ncorrect5": best.sum(),
            "ntokens": sample["ntokens"],
            "nsentences": images,
            "sample_size": images,
        }
        return self.add_auxiliary_loss(model, loss, log), images, log

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict]) -> None:
        """Log mean loss, top-1 and top-5 of the outputs of all workers."""
        LRACrossEntropyCriterion.reduce_metrics(logging_outputs)
        images = sum(float(log.get("sample_size", 0)) for log in logging_outputs)
        if images:
            found = sum(float(log.get("ncorrect5", 0)) for log in logging_outputs)
            logged.log_scalar("top5", 100 * found / images, images, round=3)
