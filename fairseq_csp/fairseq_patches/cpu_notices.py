"""What makes a run slow on a processor, or has no effect there, is said before training.

fairseq takes ``--bf16`` and ``--amp`` without a word: bfloat16 on a processor without instructions
for it makes a step many times as long, and its mixed precision is CUDA's alone. And on processors
of AMD products in float32 are slow unless the loader was told (``fairseq_csp/ops/mkl.py``).
"""

import logging

import torch
from fairseq.dataclass.configs import CommonConfig, FairseqConfig
from fairseq.trainer import Trainer

from fairseq_csp.fairseq_patches import replaces
from fairseq_csp.ops import mkl
from fairseq_csp.processor import has_bfloat16

logger = logging.getLogger(__name__)


@replaces(Trainer, "__init__")
def init(self: Trainer, cfg: FairseqConfig, *arguments: object, **options: object) -> None:
    """Make a trainer, and tell what is slow or without effect on a CPU.

    Args:
        self: the trainer.
        cfg: the configuration of the run.
        arguments: as fairseq's.
        options: as fairseq's.
    """
    if cfg.common.cpu or not torch.cuda.is_available():
        _tell(cfg.common)
    init.original(self, cfg, *arguments, **options)


def _tell(common: CommonConfig) -> None:
    if not common.bf16 and torch.backends.mkl.is_available() and mkl.is_held_back():
        logger.info(
            "MKL leaves AVX-512 alone on this processor: with `export LD_PRELOAD=$(python -m "
            "fairseq_csp.ops.mkl)` before the command, which train_lra.sh does by itself, matrix "
            "products in float32 are about twice as fast; `export LD_PRELOAD=` silences this"
        )
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
