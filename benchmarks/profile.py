"""Where the time of a training step goes: MEGA with CSP, by kind of work.

python -m benchmarks.profile --help
"""

import sys
from collections import Counter

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Machine, keep_freed_memory
from benchmarks.models import build_model, random_sample, training_step
from benchmarks.report import markdown, measured_dtypes, threads_parser
from benchmarks.step import matrix_products
from fairseq_csp.flags import positive

REST = "everything else"
# kinds of work by a part of a function's name, for all that it calls
FUNCTIONS = {
    "_Recurrence": "moving average",
    "_Convolve": "moving average",
    "fairseq_csp::csp_": "CSP",
    "_Dropout": "dropout",
    "_NativeDropout": "dropout",
    "_RMSNorm": "norms",
    "_FusedNorm": "norms",
    "_LinearSilu": "activations and gates",
    "_FeedForward": "activations and gates",
    "_GatedMixing": "activations and gates",
    "_SiluDropout": "activations and gates",
    "_GatedResidual": "activations and gates",
    "LerpBackward": "activations and gates",
}
# products, also those inside a function of another kind
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
# by a part of an operator's name
OPERATORS = {
    "linear_gradients": "activations and gates",
    "silu": "activations and gates",
    "sigmoid": "activations and gates",
    "lerp": "activations and gates",
}


def kind(event: FunctionEvent) -> str:
    """Tell the kind of work of one call: by a function around it, else by its own name."""
    if event.name in PRODUCTS:
        return "matrix products"
    outer = event
    while outer is not None:
        for part, name in FUNCTIONS.items():
            if part in outer.name:
                return name
        outer = outer.cpu_parent
    return next((name for part, name in OPERATORS.items() if part in event.name), REST)


def step_shares(
    dtype: torch.dtype, batch: int, length: int, machine: Machine, rounds: int
) -> dict[str, float]:
    """Return milliseconds of a step by kind of work, those of the fastest of some steps.

    Args:
        dtype: of the model.
        batch: number of rows.
        length: positions of a row.
        machine: where it runs; a CPU.
        rounds: number of steps.
    """
    model = build_model("mega_lra_imdb", length, attention="csp").to(dtype)
    sample = random_sample(model, batch, length)
    step = training_step(model, sample)
    for _ in range(3):
        step()
    steps = []
    for _ in range(rounds):
        shares: Counter[str] = Counter()
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            seconds = machine.seconds(step)
        for event in recorded.events():
            shares[kind(event)] += event.self_cpu_time_total / 1e3
        # what runs between the operators: Python, autograd's engine
        shares[REST] += max(1e3 * seconds - shares.total(), 0)
        steps.append(shares)
    return dict(min(steps, key=Counter.total))


def product_rates(
    dtype: torch.dtype, batch: int, length: int, machine: Machine, rounds: int
) -> dict[str, float]:
    """Return the GFLOP/s of matrix products, in the fastest of some rounds.

    Args:
        dtype: of the factors.
        batch: number of rows.
        length: positions of a row.
        machine: where they run; a CPU.
        rounds: number of rounds.

    Returns:
        The rate of a step's products, and of that of two square matrices, by their names.
    """
    model = build_model("mega_lra_imdb", length, attention="csp").to(dtype)
    square = torch.randn(2048, 2048).to(dtype)
    calls = {
        "of the step, alone": matrix_products(model.encoder, batch, length),
        "2,048 x 2,048 x 2,048": lambda: square @ square,
    }
    rates = {}
    for name, call in calls.items():
        with FlopCounterMode(display=False) as counted:
            call()
        seconds = min(machine.seconds(call) for _ in range(rounds))
        rates[name] = counted.get_total_flops() / seconds / 1e9
    return rates


def main(arguments: list[str]) -> None:
    """Measure and print a table; see ``--help``.

    Args:
        arguments: those of the command line.
    """
    options = threads_parser(
        "Show where the time of a training step of mega_lra_imdb with CSP goes, on the CPU, "
        "and the speed of its matrix products."
    )
    add = options.add_argument
    add("--batch", type=positive, default=4, help="rows")
    add("--length", type=positive, default=4000, help="positions of a row")
    add("--rounds", type=positive, default=8, help="of steps, then of products; the fastest counts")
    args = options.parse_args(arguments)
    machine = Machine("cpu", args.threads, memory=0)
    keep_freed_memory()
    sizes = (args.batch, args.length, machine, args.rounds)
    dtypes = measured_dtypes()
    tables = [step_shares(getattr(torch, name), *sizes) for name in dtypes]
    rates = [product_rates(getattr(torch, name), *sizes) for name in dtypes]
    head = ["kind of work"]
    for name in dtypes:
        head += [f"{name} ms", "%"]
    rows = []
    for name in sorted(tables[0], key=tables[0].get, reverse=True):
        rows.append([name])
        for table in tables:
            share = table.get(name, 0)
            rows[-1] += [f"{share:.0f}", f"{100 * share / sum(table.values()):.0f}"]
    sys.stdout.write(markdown(head, rows) + "\n")
    head = ["matrix products", *(f"{name} GFLOP/s" for name in dtypes)]
    rows = [[name, *(f"{found[name]:.3g}" for found in rates)] for name in rates[0]]
    sys.stdout.write(markdown(head, rows))


if __name__ == "__main__":
    main(sys.argv[1:])
