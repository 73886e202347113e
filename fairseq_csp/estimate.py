"""How long one update of a training command takes on this machine, without training.

python -m fairseq_csp.estimate lra_data/listops --user-dir fairseq_csp ... (as fairseq-train)
"""

import json
import sys
import time

import torch
from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

import fairseq_csp.plugin  # noqa: F401 (registers tasks and models)

# enough positions that the machine is kept as busy as by a whole batch
POSITIONS = 16384


def main(arguments: list[str]) -> None:
    """Print, as JSON, the seconds of an update and the number of updates.

    A few training examples are carried forward and backward, and the time is scaled to the batch.

    Args:
        arguments: those of ``fairseq-train``.
    """
    args = options.parse_args_and_arch(options.get_training_parser(), arguments)
    cfg = convert_namespace_to_omegaconf(args)
    utils.set_torch_seed(cfg.common.seed)
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model)
    criterion = task.build_criterion(cfg.criterion)
    task.load_dataset("train")
    dataset = task.dataset("train")
    order = dataset.ordered_indices()
    mean = sum(dataset.num_tokens(index) for index in order[:64]) / min(64, len(order))
    batch = cfg.dataset.batch_size or max(1, int(cfg.dataset.max_tokens / mean))
    examples = min(batch, len(order), max(2, int(POSITIONS / mean)))
    sample = dataset.collater([dataset[index] for index in order[:examples]])
    if cfg.common.bf16:
        # as fairseq's trainer does
        model, criterion = model.bfloat16(), criterion.bfloat16()
        sample = utils.apply_to_sample(_in_bfloat16, sample)
    model.train()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        loss, _, _ = criterion(model, sample)
        loss.backward()
        seconds.append(time.perf_counter() - start)
    scale = batch * cfg.optimization.update_freq[0] / examples
    estimate = {
        "seconds_per_update": min(seconds) * scale,
        "updates": cfg.optimization.max_update,
        "examples_timed": examples,
        "threads": torch.get_num_threads(),
    }
    sys.stdout.write(json.dumps(estimate) + "\n")


def _in_bfloat16(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16() if x.dtype == torch.float32 else x


if __name__ == "__main__":
    main(sys.argv[1:])
