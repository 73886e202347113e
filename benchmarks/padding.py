"""What padding costs: training steps on batches of a prepared text data set.

python -m benchmarks.padding --help
"""

import random
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from fairseq.data import Dictionary

from benchmarks.measure import Machine, best_times, keep_freed_memory
from benchmarks.models import build_model, random_sample, training_step
from benchmarks.report import device_parser, markdown
from fairseq_csp.data.tokens import load_tokens
from fairseq_csp.errors import UserError
from fairseq_csp.flags import positive
from fairseq_csp.models.graphs import GRAIN

COLUMNS = [
    "batch: tokens",
    "longest row",
    "tokens/s",
    "--keep-padding tokens/s",
    "equal lengths tokens/s",
    "ours / equal lengths",
]
SHARES = ["batches", "no padding", f"no padding, by --cuda-graphs ({GRAIN})"]


def measured_row(
    lengths: list[int], arch: str, attention: str, machine: Machine, budget: float
) -> list[float]:
    """Measure steps of a model on rows of these lengths, alternately.

    Args:
        lengths: of the rows.
        arch: architecture of the model, one for text.
        attention: its attention function.
        machine: where they run.
        budget: seconds.

    Returns:
        The numbers of ``COLUMNS``. Padding does not count as tokens. Rows of equal lengths are as
        many and hold as many tokens, but for rounding.
    """
    rows, tokens, longest = len(lengths), sum(lengths), max(lengths)
    model = build_model(arch, longest, attention=attention).to(machine.device)
    padded = random_sample(model, rows, longest)
    source = padded["net_input"]["src_tokens"]
    for row, length in enumerate(lengths):
        source[row, length:] = Dictionary().pad()
    padded["net_input"]["src_lengths"] = torch.tensor(lengths).to(machine.device)
    equal = random_sample(model, rows, round(tokens / rows))
    trimmed = training_step(model, padded)
    flat = training_step(model, equal)

    def kept() -> None:
        model.encoder.trim = False
        trimmed()
        model.encoder.trim = True

    calls = [trimmed, kept, flat]
    for call in calls:
        call()
    speeds = [tokens / seconds for seconds in best_times(machine, calls, budget)]
    return [tokens, longest, *speeds, speeds[0] / speeds[2]]


def useful_shares(sizes: np.ndarray, rows: int) -> list[list[str]]:
    """Count which part of the positions of all batches is no padding.

    Args:
        sizes: (examples,) positions of each example.
        rows: of a batch.

    Returns:
        The cells of ``SHARES``.
    """
    permutation = np.random.default_rng(0).permutation(len(sizes))
    orders = {
        "in random order": permutation,
        "--batch-by-length": np.lexsort([permutation, sizes]),
    }
    cells = []
    for name, order in orders.items():
        batches = np.split(sizes[order], range(rows, len(sizes), rows))
        longest = np.array([batch.max() for batch in batches])
        counts = np.array([len(batch) for batch in batches])
        padded = [(counts * (-(-longest // unit) * unit)).sum() for unit in (1, GRAIN)]
        cells.append([name, *(f"{sizes.sum() / positions:.2f}" for positions in padded)])
    return cells


def main(arguments: list[str]) -> None:
    """Measure and print a table; see ``--help``.

    Args:
        arguments: those of the command line.

    Raises:
        UserError: the data has too few examples, or is not there.
    """
    options = device_parser(
        "Measure training steps on random batches of a text data set, float32, with padding left "
        "out, kept, and on rows of equal lengths."
    )
    add = options.add_argument
    add("data", type=Path, help="prepared data, such as lra_data/imdb-4000")
    add("--arch", default="mega_lra_imdb", help="architecture of the model")
    add("--attention", default="csp", help="its attention function")
    add("--batch-size", type=positive, default=25, help="rows of a batch")
    add("--batches", type=positive, default=4, help="how many")
    add("--budget", type=float, default=30, help="seconds for each batch")
    args = options.parse_args(arguments)
    examples = load_tokens(str(args.data / "src-bin" / "train"))
    if len(examples) < args.batch_size * args.batches:
        raise UserError(
            f"{args.data} has {len(examples)} examples in train, too few for --batches "
            f"{args.batches} of --batch-size {args.batch_size}: ask for fewer"
        )
    machine = Machine(args.device, args.threads, memory=0)
    keep_freed_memory()
    chosen = random.Random(0).sample(range(len(examples)), args.batch_size * args.batches)
    batches = [chosen[first :: args.batches] for first in range(args.batches)]
    lengths = [[int(examples.sizes[example]) for example in batch] for batch in batches]
    rows = [
        measured_row(batch, args.arch, args.attention, machine, args.budget) for batch in lengths
    ]
    cells = [[*(format(number, ",.0f") for number in row[:-1]), f"{row[-1]:.2f}"] for row in rows]
    mean = statistics.mean(row[-1] for row in rows)
    sys.stdout.write(markdown(COLUMNS, cells) + f"\nmean of the last column: {mean:.2f}\n\n")
    sizes = np.asarray(examples.sizes)
    sys.stdout.write(markdown(SHARES, useful_shares(sizes, args.batch_size)))


if __name__ == "__main__":
    main(sys.argv[1:])
