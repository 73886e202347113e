"""Launches and bytes of a training step, counted rather than timed: the same on any machine.

python -m benchmarks.launches --help

On a GPU each operator that is not a view is a launch at least, and the memory that they read and
write is what a step of elementwise work waits for.
"""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.models import build_model, random_sample, training_step
from benchmarks.report import markdown, measured_dtypes, threads_parser
from fairseq_csp.flags import positive
from fairseq_csp.ops.kernels import chosen

# operators that only make room
ALLOCATIONS = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")


class Count(TorchDispatchMode):
    """Counts what is called inside it.

    Attributes:
        launches: calls that are no views and do more than make room, by operator.
        bytes: what they read and write, by operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        function: Any,
        types: tuple,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> object:
        """Call an operator and count it."""
        result = function(*args, **(kwargs or {}))
        packet = function.overloadpacket.__name__
        if not function.is_view and packet not in ALLOCATIONS and packet != "detach":
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            # what is written in place is among the arguments and the results
            sizes = {id(x): _bytes(x) for x in tensors}
            self.launches[packet] += 1
            self.bytes[packet] += sum(sizes.values())
        return result


def count_step(step: Callable[[], None]) -> Count:
    """Count the second call of a training step; the first fills caches."""
    step()
    with Count() as count:
        step()
    return count


def _bytes(x: Tensor) -> int:
    # an expanded tensor is read where it lies
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def main(arguments: list[str]) -> None:
    """Count and print a table; see ``--help``.

    Args:
        arguments: those of the command line.
    """
    options = threads_parser("Count launches and bytes of a training step of mega_lra_imdb, CSP.")
    add = options.add_argument
    add("--lengths", type=positive, nargs="+", default=[4000] * 4, help="of the sequences")
    add("--operators", action="store_true", help="also a table of the operators of float32")
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    batch, longest, tokens = len(args.lengths), max(args.lengths), sum(args.lengths)
    rows = []
    counts = {}
    for dtype in measured_dtypes():
        model = build_model("mega_lra_imdb", longest, attention="csp").to(getattr(torch, dtype))
        sample = random_sample(model, batch, longest)
        sample["net_input"]["src_lengths"] = torch.tensor(args.lengths)
        counts[dtype] = count = count_step(training_step(model, sample))
        kilobytes = sum(count.bytes.values()) / 1024 / tokens
        rows.append([dtype, chosen(), f"{sum(count.launches.values()):,}", f"{kilobytes:,.0f}"])
    columns = ["dtype", "kernels", "launches", "KiB a valid token"]
    sys.stdout.write(markdown(columns, rows))
    if args.operators:
        count = counts["float32"]
        listed = [
            [name, f"{count.launches[name]:,}", f"{size / 1024 / tokens:,.1f}"]
            for name, size in count.bytes.most_common()
        ]
        columns = ["operator, float32", "launches", "KiB a valid token"]
        sys.stdout.write("\n" + markdown(columns, listed))


if __name__ == "__main__":
    main(sys.argv[1:])
