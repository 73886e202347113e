"""fairseq's commands, in this process."""

import argparse
import copy
import functools
import logging
import re
import shlex
from contextlib import contextmanager

import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq_cli import train as fairseq_train
from fairseq_cli import validate as fairseq_validate

import fairseq_csp.plugin  # noqa: F401 (registers what it adds)

# the models here are too small for more, and tests run beside one another
torch.set_num_threads(1)

TINY = shlex.split("""
    --encoder-layers 2 --encoder-embed-dim 8 --encoder-hidden-dim 12 --encoder-ffn-embed-dim 10
    --encoder-attention-heads 2 --z-dim 6 --n-dim 3 --classifier-out-dim 9
""")
TRAINING = shlex.split("""
    --criterion lra_cross_entropy --optimizer adam --adam-betas (0.9,0.98) --lr 0.01
    --lr-scheduler linear_decay --total-num-update 100 --warmup-updates 2 --clip-norm 1.0
    --best-checkpoint-metric accuracy --maximize-best-checkpoint-metric --sentence-avg
    --batch-size 4 --cpu --no-progress-bar --num-workers 0 --no-epoch-checkpoints --log-interval 1
""")


@functools.cache
def configuration(*words):
    """What fairseq-train makes of the arguments of its command line."""
    for flag, value in (("--criterion", "lra_cross_entropy"), ("--batch-size", "4")):
        # without either no training begins
        words = words if flag in words else (*words, flag, value)
    parser = options.get_training_parser()
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, list(words)))


@functools.cache
def validation():
    """What fairseq-validate makes of its command line, of which tests change two arguments."""
    args = options.parse_args_and_arch(
        options.get_validation_parser(),
        ["data", "--path", "checkpoint", "--cpu", "--no-progress-bar", "--num-workers", "0"],
    )
    return convert_namespace_to_omegaconf(args)


def train(data, save, *words, updates=2):
    """fairseq-train; return the last checkpoint."""
    metrics.reset()
    cfg = copy.deepcopy(configuration(*map(str, (data, *TRAINING, *words))))
    cfg.checkpoint.save_dir = str(save)
    cfg.optimization.max_update = updates
    fairseq_train.main(cfg)
    return torch.load(save / "checkpoint_last.pt", weights_only=False)


def validate(checkpoint, subset="valid", data=None):
    """fairseq-validate, perhaps on other data; return the metrics that it logs."""
    metrics.reset()
    cfg = copy.deepcopy(validation())
    cfg.common_eval.path = str(checkpoint)
    cfg.dataset.valid_subset = subset
    with logged("fairseq.logging.progress_bar") as lines:
        fairseq_validate.main(cfg, data and argparse.Namespace(data=str(data)))
    pairs = re.findall(r"(loss|accuracy|top5) ([\d.]+)", lines[-1])
    return {name: float(value) for name, value in pairs}


@contextmanager
def logged(name):
    """Collect what a logger says; fairseq and hydra replace the handlers that pytest installs."""
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    logger, handler = logging.getLogger(name), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
