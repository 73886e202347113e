"""Comparisons of variants, some seeds of each, in one table.

    python -m fairseq_csp.ablations shift     CSP's own choices: MEGA on small ListOps
    python -m fairseq_csp.ablations mixers    every mixer in a Transformer and in MEGA
    python -m fairseq_csp.ablations rope      learning rates of the rotary Transformer
    python -m fairseq_csp.ablations vision    CSP and softmax in a Vision Transformer, real CIFAR-10

Each run has the demo's recipe and data, that of ``vision`` the laptop's, unless flags are given.
The mixers' models are small and equal but for the mixer; their data sets, and those of the rates,
are the demo's ListOps and CIFAR-10 as ``preset=small`` has it.
"""

import argparse
import logging
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import fairseq_csp.models.families  # noqa: F401 (registers them)
from fairseq_csp.datasets import DATASETS
from fairseq_csp.errors import UserError
from fairseq_csp.flags import positive
from fairseq_csp.models.family import can_take, family
from fairseq_csp.modules.attention import ATTENTION_REGISTRY
from fairseq_csp.recipes.flags import ROOT
from fairseq_csp.report.pages import markdown_report
from fairseq_csp.report.runs import COMMANDS, find_runs, read_record
from fairseq_csp.train_lra import RESULT

logger = logging.getLogger("ablations")

# value (and feed-forward) channels with which MEGA with CSP has as many parameters as with softmax,
# which has query and key parts besides: 601,614 and 602,658
EQUAL_PARAMETERS = "183"


@dataclass(frozen=True)
class Variant:
    """What the seeds of one directory have in common.

    Attributes:
        attention: name of the attention function.
        flags: for fairseq-train.
        model: the family.
        dataset: whose small stand-in is trained on; None: the one that is asked for.
        preset: the recipe.
        benchmark: whose recipe.
    """

    attention: str
    flags: tuple[str, ...] = ()
    model: str = "mega"
    dataset: str | None = None
    preset: str = "demo"
    benchmark: str = "lra"

    def cell(self, dataset: str) -> list[str]:
        """Return arguments of train_lra.sh: what is trained, on which data, by which recipe.

        Args:
            dataset: trained on where the variant names none.
        """
        # runs of earlier revisions, which name no benchmark, go on
        return [
            *([] if self.benchmark == "lra" else [f"benchmark={self.benchmark}"]),
            f"model_name={self.model}",
            f"dataset_name={self.dataset or dataset}",
            f"preset={self.preset}",
            f"attention={self.attention}",
        ]


# the variant that is in every ablation of CSP: its defaults
CSP = {"csp": Variant("csp")}
# of each comparison the variants by the names of their directories
ABLATIONS = {
    "shift": CSP
    | {f"shift-{name}": Variant("csp", ("--csp-shift", name)) for name in ("linear", "none")},
    "group-size": CSP
    | {
        f"group-size-{size}": Variant("csp", ("--csp-group-size", size))
        for size in ("4", "8", "full")
    },
    "order": CSP | {"order-sort_shift": Variant("csp", ("--csp-order", "sort_shift"))},
    "attention": CSP
    | {
        "csp-equal-parameters": Variant("csp", ("--encoder-hidden-dim", EQUAL_PARAMETERS)),
        "softmax": Variant("softmax"),
    },
}
# models of one size, so that every mixer can be trained in minutes
MIXER_FLAGS = (
    *("--encoder-layers", "2", "--encoder-embed-dim", "64", "--encoder-hidden-dim", "128"),
    *("--encoder-ffn-embed-dim", "128", "--classifier-out-dim", "128"),
    *("--encoder-attention-heads", "4"),
)
ABLATIONS["mixers"] = {
    f"mixers/{model}-{dataset}-{name}": Variant(name, MIXER_FLAGS, model, dataset, preset)
    for dataset, preset in (("listops", "demo"), ("cifar10", "small"))
    for model in ("transformer_rope", "mega")
    for name, cls in sorted(ATTENTION_REGISTRY.items())
    if can_take(family(model), cls) and not (cls.images_only and DATASETS[dataset].pixels is None)
}
# from that of the plain Transformer to twice MEGA's; the recipe has what was best on valid
ROPE_RATES = ("0.0005", "0.001", "0.002", "0.004", "0.008")
ABLATIONS["rope"] = {
    f"rope/{dataset}-{rate}": Variant(
        "softmax", ("--lr", rate), "transformer_rope", dataset, preset
    )
    for dataset, preset in (("listops", "demo"), ("cifar10", "small"))
    for rate in ROPE_RATES
}
VISION = {
    "csp-linear": ("csp", "--csp-shift", "linear"),
    "csp-exponential": ("csp", "--csp-shift", "exponential"),
    "softmax": ("softmax",),
    "sliceformer": ("sliceformer",),
}
ABLATIONS["vision"] = {
    f"vision/{name}": Variant(attention, tuple(flags), "vit", "cifar10", "laptop", "vision")
    for name, (attention, *flags) in VISION.items()
}


def main(arguments: list[str]) -> int:
    """Train what is not trained yet, print the report's table, return the exit status.

    Raises:
        UserError: the data is not there; a run there was made with other flags, or what it wrote
            down is damaged.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    args = _parser().parse_args(arguments[:end])
    extra = arguments[end + 1 :]
    if args.data and not args.data.is_dir():
        raise UserError(
            f"--data is {args.data}, which is no directory: name prepared data, or leave it out"
        )
    variants = {
        name: variant
        for name, variant in ABLATIONS[args.ablation].items()
        if fnmatch(name, args.only)
    }
    if not variants:
        names = ", ".join(ABLATIONS[args.ablation])
        raise UserError(f"--only {args.only} matches none of {names}")
    for seed in range(args.seeds):
        for name, variant in variants.items():
            run = args.out / name / f"seed-{seed}"
            asked = [
                *variant.cell(args.dataset),
                f"seed={seed}",
                f"save_dir={run.absolute()}",
                *([f"data_dir={args.data.absolute()}"] if args.data else []),
                *["--", *variant.flags, *extra],
            ]
            status = _train(run, asked)
            if status:
                return status
    sys.stdout.write(markdown_report(find_runs(args.out / name for name in variants)))
    return 0


def _train(run: Path, arguments: list[str]) -> int:
    """Train and test a run, or go on with it, unless it is finished."""
    record = read_record(run / COMMANDS)
    # earlier revisions wrote "words"
    before = record.get("arguments") or record.get("words")
    if record and before != arguments:
        made_with = " ".join(before or [f"none in {COMMANDS}"])
        raise UserError(
            f"{run} was made with other arguments ({made_with}): choose another --out, or remove it"
        )
    if read_record(run / RESULT).get("exit_status") == 0:
        logger.info(f"{run} is finished")
        return 0
    command = [sys.executable, "-m", "fairseq_csp.train_lra", *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_csp.ablations",
        description="Train the variants of an ablation; a run that is finished is not run again.",
        epilog="What follows -- goes to fairseq-train: -- --max-update 1000",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("ablation", choices=ABLATIONS, help="what is varied")
    add("--seeds", type=positive, default=3, help="runs of each variant")
    add("--only", default="*", metavar="PATTERN", help="variants whose names match, as *-csp does")
    add("--out", type=Path, default=ROOT / "outputs" / "ablations", help="where the runs go")
    add("--dataset", default="listops", help="the data set, where the variants leave it open")
    add("--data", type=Path, help="prepared data to take instead")
    return parser


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
