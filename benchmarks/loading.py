"""How long it takes until the first batch of prepared data is there.

python -m benchmarks.loading --help
"""

import argparse
import sys
import time
from pathlib import Path

from fairseq import tasks
from omegaconf import OmegaConf

import fairseq_csp.plugin  # noqa: F401 (registers the tasks)
from benchmarks.report import markdown
from fairseq_csp.flags import positive
from fairseq_csp.tasks.lra_image import LRAImageConfig
from fairseq_csp.tasks.lra_text import LRATextConfig

COLUMNS = ["data", "train", "valid", "seconds"]
SPLITS = ("train", "valid")
# beyond any image or text
POSITIONS = 1 << 20


def seconds_to_first_batches(data: Path, batch_size: int) -> tuple[list[int], float]:
    """Load train and valid and draw a batch of each, as fairseq does once all is imported.

    Args:
        data: a prepared directory.
        batch_size: examples of a batch.

    Returns:
        The examples of each split, and the seconds that all took.
    """
    started = time.perf_counter()
    text = (data / "src-bin").exists()
    config = (LRATextConfig if text else LRAImageConfig)(data=str(data), max_positions=POSITIONS)
    config._name, config.seed = "lra-text" if text else "lra-image", 0
    config.sentence_class_num = 10
    task = tasks.setup_task(OmegaConf.structured(config))
    examples = []
    for split in SPLITS:
        task.load_dataset(split)
        dataset = task.dataset(split)
        batches = task.get_batch_iterator(dataset, max_sentences=batch_size, seed=0)
        next(iter(batches.next_epoch_itr(shuffle=split == "train")))
        examples.append(len(dataset))
    return examples, time.perf_counter() - started


def main(arguments: list[str]) -> None:
    """Measure and print a table; see ``--help``.

    Args:
        arguments: those of the command line.
    """
    options = argparse.ArgumentParser(
        description="Measure how long the first batches of train and valid take, imports left out.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("data", type=Path, nargs="+", help="prepared data, such as lra_data/aan")
    options.add_argument("--batch-size", type=positive, default=32, help="examples of a batch")
    args = options.parse_args(arguments)
    rows = []
    for data in args.data:
        examples, seconds = seconds_to_first_batches(data, args.batch_size)
        rows.append([str(data), *(format(count, ",") for count in examples), f"{seconds:.2f}"])
    sys.stdout.write(markdown(COLUMNS, rows))


if __name__ == "__main__":
    main(sys.argv[1:])
