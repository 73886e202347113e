"""The schedule's values, and what it refuses."""

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.optim import build_optimizer
from fairseq.optim.lr_scheduler import build_lr_scheduler

import fairseq_csp.plugin  # noqa: F401 (registers the schedule)
from fairseq_csp.errors import UserError


def schedule(*flags):
    words = ["data", "--task", "lra-text", "--arch", "mega_lra_listop", "--optimizer", "adam"]
    words += ["--lr-scheduler", "linear_decay", "--lr", "0.01", *flags]
    words += ["--criterion", "lra_cross_entropy", "--batch-size", "4"]
    args = options.parse_args_and_arch(options.get_training_parser(), words)
    cfg = convert_namespace_to_omegaconf(args)
    optimizer = build_optimizer(cfg.optimizer, [torch.nn.Parameter(torch.zeros(1))])
    return build_lr_scheduler(cfg.lr_scheduler, optimizer)


@pytest.mark.parametrize("power", [1, 2])
def test_values(power):
    steps = schedule(
        "--warmup-updates", "10", "--warmup-power", str(power), "--warmup-init-lr", "0.001",
        "--total-num-update", "30", "--end-learning-rate", "0.002",
    )  # fmt: skip
    rates = [steps.step_update(update) for update in range(36)]
    warmup = [0.001 + 0.009 * (t / 10) ** power for t in range(11)]
    decay = [0.01 - 0.008 * (t - 10) / 20 for t in range(11, 31)]
    assert rates == pytest.approx([*warmup, *decay, *[0.002] * 5])


def test_defaults():
    steps = schedule("--max-update", "20", "--warmup-updates", "10")
    # from 0, linearly, down to 0 at the run's end
    assert [steps.step_update(t) for t in (0, 5, 10, 15, 20)] == pytest.approx(
        [0, 0.005, 0.01, 0.005, 0]
    )


def test_saved_state_of_the_published_code_loads():
    schedule("--max-update", "20").load_state_dict({"lr": 0.1})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--warmup-updates", "5", "--total-num-update", "5"], "is 5; it must be above"),
        (["--lr", "0.1,0.2", "--max-update", "5"], "takes one learning rate"),
    ],
)
def test_mistakes_are_named(flags, words):
    with pytest.raises(UserError, match=words):
        schedule(*flags)
