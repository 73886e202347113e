"""Cross entropy and accuracy of a classification."""

import math

import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from torch import Tensor


@register_criterion("lra_cross_entropy", dataclass=FairseqDataclass)
class LRACrossEntropyCriterion(FairseqCriterion):
    """Cross entropy averaged over examples; logged in bits, with the accuracy in percent."""

    def forward(
        self, model: BaseFairseqModel, sample: dict, reduce: bool = True
    ) -> tuple[Tensor, int, dict]:
        """Compute the loss of a batch.

        Args:
            model: called with ``sample["net_input"]``; gives logits (batch, classes).
            sample: ``target`` holds the classes, (batch,) or (batch, 1) int64.
            reduce: sum the loss over the batch.

        Returns:
            The loss in nats, summed or (batch,); the number of examples, which is the denominator
            of the gradient; and what to log.
        """
        logits = model(**sample["net_input"])
        target = sample["target"].view(-1)
        loss = F.cross_entropy(logits.float(), target, reduction="sum" if reduce else "none")
        examples = target.size(0)
        return (
            loss,
            examples,
            {
                "loss": loss.detach(),
                "ncorrect": (logits.argmax(1) == target).sum(),
                "ntokens": sample["ntokens"],
                "nsentences": examples,
                "sample_size": examples,
            },
        )

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict]) -> None:
        """Log the mean loss and the accuracy of the outputs of all workers."""

        def total(key: str) -> float:
            # fairseq runs the loss of a dummy batch on workers that have run out of data, times 0
            return sum(float(log.get(key, 0)) for log in logging_outputs)

        examples = total("sample_size")
        if examples:
            metrics.log_scalar("loss", total("loss") / examples / math.log(2), examples, round=3)
            metrics.log_scalar("accuracy", 100 * total("ncorrect") / examples, examples, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Tell fairseq that workers' outputs may be added up."""
        return True
