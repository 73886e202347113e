"""Training steps of every architecture beside the direct formulas: one table.

python -m benchmarks.speed --help
"""

import argparse
import sys
from dataclasses import dataclass, field

from benchmarks.plots import plot
from benchmarks.report import (
    Measurements,
    Table,
    markdown,
    measure,
    measured_dtypes,
    new_directory,
    parser,
    ratio,
    shown,
)
from fairseq_csp.flags import positive
from fairseq_csp.plots import load_pyplot

LENGTHS = (1024, 2048, 4000, 16384)
MECHANISMS = (
    ("mega", "csp"),
    ("mega", "softmax"),
    ("mega", "laplace"),
    ("flash", "csp"),
    ("flash", "relu2"),
    ("transformer", "csp"),
    ("transformer", "softmax"),
    ("lstm", None),
)
MEGABYTE = 1 << 20
COLUMNS = [
    "training step",
    "dtype",
    "tokens/s",
    "reference tokens/s",
    "naive tokens/s",
    "ours / naive",
    "peak MB",
    "naive peak MB",
    "ratio",
]


@dataclass(frozen=True)
class Work:
    """A training step, measured in all its dtypes and by the direct formulas in float32.

    Attributes:
        mechanism: architecture and attention function, in words.
        arch: name of the architecture.
        batch: number of rows.
        length: positions of a row.
        options: flags of the model.
        dtypes: what the model is converted to.
        naive: whether there are direct formulas for it.
        products: whether its matrix products are timed as well, and the step without kernels.
    """

    mechanism: str
    arch: str
    batch: int
    length: int
    options: dict[str, object] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("float32",)
    naive: bool = True
    products: bool = False

    @property
    def name(self) -> str:
        """Name of the work, for ``--only``."""
        return f"{self.mechanism} {self.batch} x {self.length}"

    def specs(self) -> dict[str, dict]:
        """Return what the measuring processes are told.

        By dtype; under ``reference DTYPE`` the same without kernels, and under ``naive``.
        """
        shared = {
            "arch": self.arch,
            "options": self.options,
            "batch": self.batch,
            "length": self.length,
        }
        specs = {
            dtype: shared | {"dtype": dtype, "naive": False, "products": self.products}
            for dtype in self.dtypes
        }
        if self.products:
            for dtype in self.dtypes:
                specs[f"reference {dtype}"] = specs[dtype] | {
                    "products": False,
                    "kernels": "reference",
                }
        if self.naive:
            specs["naive"] = shared | {"dtype": "float32", "naive": True, "products": False}
        return specs


def all_work(lengths: list[int], tokens: int) -> list[Work]:
    """Return the text models at each length, then MEGA with CSP on images, then the ViT.

    Args:
        lengths: positions of a row of text.
        tokens: of a batch of text; at least one row is taken.
    """
    works = []
    dtypes = measured_dtypes()
    for family, attention in MECHANISMS:
        linear = (family, attention) == ("mega", "csp")
        for length in lengths:
            works.append(
                Work(
                    f"{family} {attention}" if attention else family,
                    f"{family}_lra_imdb",
                    max(1, tokens // length),
                    length,
                    {"attention": attention},
                    dtypes if linear else ("float32",),
                    naive=family != "lstm",
                    products=linear,
                )
            )
    # as the recipes train them
    image = {"attention": "csp", "encoder_normalize_before": True}
    works.append(Work("mega csp pf128", "mega_lra_pf128", 1, 16384, image, products=True))
    works.append(Work("mega csp cifar10", "mega_lra_cifar10", 8, 1024, image, products=True))
    for arch, batch, length, patch in (("vit_cifar10", 64, 64, 4), ("vit_cifar10", 16, 256, 2)):
        for attention in ("csp", "softmax"):
            options = {"attention": attention, "patch_size": patch}
            csp = attention == "csp"
            mechanism = f"vit {attention} cifar10"
            works.append(Work(mechanism, arch, batch, length, options, naive=False, products=csp))
    return works


def measured_rows(work: Work, measurements: Measurements) -> list[dict]:
    """Measure one piece of work.

    Returns:
        One row of the table a dtype; the keys are told in ``docs/speed.md``.
    """
    answers = measurements.best(work.specs())
    naive = answers.get("naive", {})
    rows = []
    for dtype in work.dtypes:
        ours, reference = answers[dtype], answers.get(f"reference {dtype}", {})
        for answer in (ours, reference, naive):
            if "seconds" in answer:
                answer["tokens_per_second"] = work.batch * work.length / answer["seconds"]
        beside = ours.get("beside", {})
        rows.append(
            {
                "name": work.name,
                "mechanism": work.mechanism,
                "arch": work.arch,
                "batch": work.batch,
                "length": work.length,
                "dtype": dtype,
                "ours": ours,
                "reference": reference,
                "naive": naive,
                "kernel_ratio": ratio(ours, "tokens_per_second", reference, "tokens_per_second"),
                "speed_ratio": ratio(ours, "tokens_per_second", naive, "tokens_per_second"),
                "memory_ratio": ratio(ours, "peak_bytes", naive, "peak_bytes"),
                "step_over_products": ratio(beside, "step_seconds", beside, "products_seconds"),
            }
        )
    return rows


def later_tables(rows: list[dict]) -> str:
    """Return the images a second, then the matrix products alone, where there are any."""
    images = [row for row in rows if row["arch"].startswith("vit_") and "seconds" in row["ours"]]
    rates = [
        [row["name"], row["dtype"], format(row["batch"] / row["ours"]["seconds"], ",.1f")]
        for row in images
    ]
    compared = [_product_cells(row) for row in rows if row["step_over_products"]]
    columns = ["training step", "dtype", "step s", "its matrix products alone s", "ratio"]
    tables = [
        markdown(["training step", "dtype", "images/s"], rates) if rates else "",
        markdown(columns, compared) if compared else "",
    ]
    return "\n".join(filter(None, tables))


def _cells(row: dict) -> list[str]:
    ours, naive = row["ours"], row["naive"]
    return [
        row["name"],
        row["dtype"],
        *(_speed(answer) for answer in (ours, row["reference"], naive)),
        shown(row["speed_ratio"], ".2f"),
        *(_memory(answer) for answer in (ours, naive)),
        shown(row["memory_ratio"], ".2f"),
    ]


def _speed(answer: dict) -> str:
    return answer.get("problem") or shown(answer.get("tokens_per_second"), ",.0f")


def _memory(answer: dict) -> str:
    return shown(answer["peak_bytes"] / MEGABYTE, ",.0f") if "peak_bytes" in answer else ""


def _product_cells(row: dict) -> list[str]:
    beside = row["ours"]["beside"]
    seconds = [format(beside[key], ".3f") for key in ("step_seconds", "products_seconds")]
    return [row["name"], row["dtype"], *seconds, format(row["step_over_products"], ".2f")]


def main(arguments: list[str]) -> None:
    """Measure and print; see ``--help``.

    Args:
        arguments: those of the command line.

    Raises:
        UserError: ``--only`` matches nothing, or matplotlib is missing for ``--plot``.
    """
    args = _parse(arguments)
    if args.plot:
        load_pyplot()
    works = {work.name: work for work in all_work(args.lengths, args.tokens)}
    table = Table(COLUMNS, _cells, later_tables)
    rows = measure("benchmarks.step", works, measured_rows, table, args)
    if args.plot:
        plot(rows, args.plot)


def _parse(arguments: list[str]) -> argparse.Namespace:
    options = parser("Measure training steps with kernels, without, and naively.")
    add = options.add_argument
    add("--lengths", type=positive, nargs="+", default=LENGTHS, help="of the text rows")
    add("--tokens", type=positive, default=16000, help="of a batch of text")
    add("--plot", type=new_directory, metavar="DIR", help="draw time.png and memory.png")
    return options.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
