"""Training steps and CSP on a GPU, in one process: time, memory, launches, how busy the GPU is.

python -m benchmarks.gpu --help
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.models import build_model, random_sample, training_step
from benchmarks.report import markdown, markdown_line
from fairseq_csp.errors import UserError
from fairseq_csp.flags import positive
from fairseq_csp.ops.csp import channel_wise_sample_permutation
from fairseq_csp.ops.kernels import VARIABLE

# lengths about as uneven as those of a batch of IMDB's reviews in bytes, cut at 4,000; made up
UNEVEN = (
    *(690, 4000, 1222, 732, 876, 1016, 2413, 573, 839, 1780, 1053, 655, 3070, 1408, 964),
    *(741, 2210, 310, 928, 1132, 626, 1547, 3608, 805, 1164),
)
GRAPHS = "graphs"
PRECISIONS = ("float32", "tf32", "amp", "bfloat16")
STEPS = ["step", "precision", "kernels", "ms", "valid tokens/s", "launches", "GPU busy", "peak MB"]
OPERATOR = ["CSP, forward and backward", "dtype", "ms", "copy ms", "times a copy"]


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """Return the median time of a call on the GPU, after three that do not count."""
    times = []
    for number in range(rounds + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        if number >= 3:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def kernels_of(call: Callable[[], object]) -> dict[str, tuple[int, float]]:
    """Return how often each kernel is launched by a call, and its milliseconds altogether."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        call()
        torch.cuda.synchronize()
    found: dict[str, tuple[int, float]] = {}
    for event in recorded.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            count, total = found.get(event.name, (0, 0.0))
            found[event.name] = count + 1, total + event.device_time_total / 1e3
    return found


def step_of(
    attention: str, precision: str, lengths: list[int], graphs: bool = False
) -> Callable[[], None]:
    """Return a training step of ``mega_lra_imdb`` on rows of these lengths."""
    options = {"attention": attention, "cuda_graphs": graphs}
    model = build_model("mega_lra_imdb", max(lengths), **options).cuda()
    if precision == "bfloat16":
        model = model.bfloat16()
    sample = random_sample(model, len(lengths), max(lengths))
    # fairseq leaves an array on the host, where the tasks have the lengths
    sample["net_input"]["src_lengths"] = np.array(lengths)
    for row, length in enumerate(lengths):
        sample["net_input"]["src_tokens"][row, length:] = model.encoder.encoder.padding
    step = training_step(model, sample)
    cast = torch.autocast("cuda", torch.bfloat16) if precision == "amp" else nullcontext()

    def in_precision() -> None:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        with cast:
            step()

    return in_precision


def step_row(
    name: str, attention: str, precision: str, kernels: str, lengths: list[int], rounds: int
) -> list:
    """Measure a training step; the columns are ``STEPS``."""
    graphs = kernels == GRAPHS
    os.environ[VARIABLE] = "auto" if graphs else kernels
    step = step_of(attention, precision, lengths, graphs)
    time = milliseconds(step, rounds)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    peak = (torch.cuda.max_memory_allocated() - before) / (1 << 20)
    found = kernels_of(step).values()
    busy = sum(total for _, total in found) / time
    tokens = 1000 * sum(lengths) / time
    launches = sum(count for count, _ in found)
    cells = [f"{time:.2f}", f"{tokens:,.0f}", f"{launches:,}", f"{busy:.2f}"]
    # graphs keep their memory
    return [name, precision, kernels, *cells, "" if graphs else f"{peak:,.0f}"]


def operator_row(dtype: torch.dtype, lengths: list[int], rounds: int) -> list:
    """Measure CSP on 256 channels beside a copy of its values; the columns are ``OPERATOR``."""
    values = torch.randn(len(lengths), 256, max(lengths), device="cuda", dtype=dtype)
    grad = torch.randn_like(values)
    values.requires_grad_()
    host = None if len(set(lengths)) == 1 else np.array(lengths)

    def call() -> Tensor:
        out = channel_wise_sample_permutation(values.transpose(1, 2), host, layer=1, num_layers=4)
        return torch.autograd.grad(out.transpose(1, 2), values, grad)[0]

    ours, copy = (milliseconds(one, 10 * rounds) for one in (call, values.detach().clone))
    on_gpu = sum(total for _, total in kernels_of(call).values())
    shape = f"{len(lengths)} x {max(lengths)} x 256{'' if host is None else ', uneven'}"
    times = [f"{ours:.3f} ({on_gpu:.3f} of it kernels)", f"{copy:.3f}", f"{on_gpu / copy:.2f}"]
    return [shape, str(dtype).removeprefix("torch."), *times]


def main(arguments: list[str]) -> None:
    """Measure and print; see ``--help``.

    Args:
        arguments: those of the command line.

    Raises:
        UserError: there is no GPU.
    """
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = made.add_argument
    add("--rounds", type=positive, default=20, help="steps of each row; the median counts")
    add("--attention", nargs="+", default=["csp", "softmax"], help="attention functions")
    add("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    add(
        "--kernels",
        nargs="+",
        default=["auto", "reference", GRAPHS],
        help=f"of {VARIABLE}, or graphs",
    )
    add("--listed", type=int, default=0, help="list so many kernels of the first row")
    args = made.parse_args(arguments)
    if not torch.cuda.is_available():
        raise UserError("there is no GPU; python -m benchmarks.speed measures on a CPU")
    out = sys.stdout.write
    out(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n\n")
    equal = [round(sum(UNEVEN) / len(UNEVEN))] * len(UNEVEN)
    kinds = {"25 x 4000": [4000] * 25, "25 uneven ones": list(UNEVEN), "25 equal ones": equal}
    first = step_of(args.attention[0], args.precisions[-1], kinds["25 x 4000"])
    if args.listed:
        first()
        found = sorted(kernels_of(first).items(), key=lambda one: -one[1][1])[: args.listed]
        rows = [[name[:90], str(count), f"{total:.3f}"] for name, (count, total) in found]
        out(markdown(["kernel", "launches", "ms"], rows) + "\n")
    out(markdown(STEPS, []))
    for attention in args.attention:
        for precision in args.precisions:
            for kernels in args.kernels:
                for kind, lengths in kinds.items():
                    name = f"mega {attention} {kind}"
                    row = step_row(name, attention, precision, kernels, lengths, args.rounds)
                    out(markdown_line(row))
                    sys.stdout.flush()
    os.environ[VARIABLE] = "auto"
    out("\n" + markdown(OPERATOR, []))
    for dtype in (torch.float32, torch.bfloat16):
        for kind in ("25 x 4000", "25 uneven ones"):
            out(markdown_line(operator_row(dtype, kinds[kind], args.rounds)))


if __name__ == "__main__":
    main(sys.argv[1:])
