"""Ablations of CSP: MEGA on small ListOps, some seeds of each variant, in one table.

python -m fairseq_csp.ablations shift
"""

import argparse
import logging
import subprocess
import sys
from pathlib import Path

from fairseq_csp.errors import UserError
from fairseq_csp.flags import positive
from fairseq_csp.recipes.flags import ROOT
from fairseq_csp.report.pages import markdown_report
from fairseq_csp.report.runs import COMMANDS, find_runs, read_record
from fairseq_csp.train_lra import RESULT

logger = logging.getLogger("ablations")

# value (and feed-forward) channels with which MEGA with CSP has as many parameters as with softmax,
# which has query and key parts besides: 601,614 and 602,658
EQUAL_PARAMETERS = "183"
# the variant that is in every ablation: CSP by its defaults
CSP: dict[str, tuple[str, list[str]]] = {"csp": ("csp", [])}
# of each ablation the variants by the names of their directories: attention function and flags
ABLATIONS = {
    "shift": CSP | {f"shift-{name}": ("csp", ["--csp-shift", name]) for name in ("linear", "none")},
    "group-size": CSP
    | {f"group-size-{name}": ("csp", ["--csp-group-size", name]) for name in ("4", "8", "full")},
    "order": CSP | {"order-sort_shift": ("csp", ["--csp-order", "sort_shift"])},
    "attention": CSP
    | {
        "csp-equal-parameters": ("csp", ["--encoder-hidden-dim", EQUAL_PARAMETERS]),
        "softmax": ("softmax", []),
    },
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
    variants = ABLATIONS[args.ablation]
    for seed in range(args.seeds):
        for name, (attention, flags) in variants.items():
            run = args.out / name / f"seed-{seed}"
            asked = [
                "model_name=mega",
                f"dataset_name={args.dataset}",
                "preset=demo",
                f"attention={attention}",
                f"seed={seed}",
                f"save_dir={run.absolute()}",
                *([f"data_dir={args.data.absolute()}"] if args.data else []),
                *["--", *flags, *extra],
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
    add("--out", type=Path, default=ROOT / "outputs" / "ablations", help="where the runs go")
    add("--dataset", default="listops", help="the data set; its small stand-in is taken")
    add("--data", type=Path, help="prepared data to take instead")
    return parser


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
