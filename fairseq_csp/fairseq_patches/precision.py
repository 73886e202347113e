"""What ``--bf16`` and ``--amp`` cost on a processor is said before training.

fairseq takes both without a word: bfloat16 on a processor without instructions for it makes a step
many times as long, and its mixed precision is CUDA's alone.
"""

import logging

import torch
from fairseq.dataclass.configs import CommonConfig, FairseqConfig
from fairseq.trainer import Trainer

from fairseq_csp.fairseq_patches import replaces
from fairseq_csp.processor import has_bfloat16

logger = logging.getLogger(__name__)


@replaces(Trainer, "__init__")
def init(self: Trainer, cfg: FairseqConfig, *arguments: object, **options: object) -> None:
    """Make a trainer, and warn of what is slow or without effect on a CPU.

    Args:
        self: the trainer.
        cfg: the configuration of the run.
        arguments: as fairseq's.
        options: as fairseq's.
    """
    if cfg.common.cpu or not torch.cuda.is_available():
        _warn(cfg.common)
    init.original(self, cfg, *arguments, **options)


def _warn(common: CommonConfig) -> None:
    if common.bf16 and not has_bfloat16():
        logger.warning(
            "--bf16: this processor has no instructions for bfloat16 (avx512_bf16 or amx_bf16), "
            "so that a step takes 10 to 20 times as long as in float32: leave the flag out"
        )
    if common.amp:
        logger.warning(
            "--amp has no effect on a CPU: fairseq's mixed precision is for GPUs; this run "
            "computes in float32" + (" or, by --bf16, in bfloat16" if common.bf16 else "")
        )
