"""Report on training runs: ``python -m fairseq_csp.report outputs --out report.html``."""

import argparse
import logging
import sys
from pathlib import Path

import torch
from fairseq import utils

from fairseq_csp.errors import UserError
from fairseq_csp.flags import user_directory
from fairseq_csp.report.pages import markdown_report, write_html, write_markdown
from fairseq_csp.report.runs import BEST, NOT_TESTED, Run, find_runs
from fairseq_csp.train_lra import USER_DIR, evaluate

logger = logging.getLogger("report")
WRITERS = {".html": write_html, ".md": write_markdown}


def main(arguments: list[str]) -> int:
    """Read the runs and write the report; return the exit status: 1 where a test failed.

    Raises:
        UserError: there is no run, or the report cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_csp.report", description="Report on training runs."
    )
    add = parser.add_argument
    add("roots", nargs="+", type=Path, metavar="DIRECTORY", help="searched for runs, all levels")
    add(
        "--out", type=Path, help="report.html or report.md (default: Markdown tables on the screen)"
    )
    add("--test", action="store_true", help="test the best checkpoints that were not tested yet")
    text = "your own user directory, where the models need it"
    add("--user-dir", type=user_directory, metavar="DIR", help=text)
    args = parser.parse_args(arguments)
    if args.user_dir:
        utils.import_user_module(args)
    if args.out is not None and (args.out.suffix not in WRITERS or args.out.is_dir()):
        raise UserError(
            f"--out is {args.out}: it must be a file, its name must end in {' or '.join(WRITERS)}"
        )
    runs = find_runs(args.roots)
    status = 0
    if args.test:
        for run in runs:
            try:
                _test(run, args.user_dir or USER_DIR)
            except UserError as error:
                logger.warning(error)
                status = 1
        runs = find_runs(args.roots)
    if args.out is None:
        # a terminal's encoding may lack a character
        text, encoding = markdown_report(runs), sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    else:
        WRITERS[args.out.suffix](runs, args.out)
    return status


def _test(run: Run, user_dir: str) -> None:
    """Test a run that was not tested.

    Args:
        run: the run.
        user_dir: the user directory that its model needs.

    Raises:
        UserError: it cannot be tested.
    """
    best = run.path / BEST
    if run.status != NOT_TESTED or not best.is_file():
        return
    if run.data is None:
        raise UserError(f"{best} could not be tested: nothing tells what data it was trained on")
    batch_size = run.settings.get("--batch-size", "")
    status = evaluate(
        Path(run.data),
        run.path,
        batch_size if batch_size.isdecimal() else "32",
        cpu=not torch.cuda.is_available(),
        user_dir=user_dir,
    )
    if status:
        raise UserError(f"{best} could not be tested: the lines above tell why")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    sys.exit(main(sys.argv[1:]))
