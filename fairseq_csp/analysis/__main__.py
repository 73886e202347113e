"""Pictures of what the mechanism does, each with its numbers as CSV."""

import argparse
import logging
import sys
from pathlib import Path

from fairseq import utils

from fairseq_csp.analysis import collapse, image_maps, maps, rank, reach
from fairseq_csp.errors import UserError
from fairseq_csp.flags import positive, user_directory
from fairseq_csp.ops.csp import FULL, ORDERS
from fairseq_csp.output import printable


def _group_size(text: str) -> int | str:
    return text if text == FULL else positive(text)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fairseq_csp.analysis", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        made.add_argument(
            "--out", type=Path, default=Path(f"{name}.png"), help="the picture (.png)"
        )
        return made

    def command_on_trained(name: str, text: str, split: str) -> argparse.ArgumentParser:
        made = command(name, text)
        add = made.add_argument
        add("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="those to compare")
        add("--data", type=Path, help="the prepared data, where it is not where it was in training")
        text = "your own user directory, where the model needs it"
        add("--user-dir", type=user_directory, metavar="DIR", help=text)
        add("--split", default=split, help="split that inputs are taken from")
        return made

    text = "attention maps of trained models on one input"
    add = command_on_trained("maps", text, split="test").add_argument
    add("--longest", type=positive, default=64, help="take the first input no longer than this")
    add("--example", type=int, help="take this input instead, numbered from 0")
    add("--layers", type=_numbers, metavar="N,N,...", help="layers, from 0 (first, middle, last)")
    add("--channels", type=_numbers, metavar="N,N,...", help="channels or heads (three of them)")

    text = "where in an image a patch takes its values from, in trained Vision Transformers"
    add = command_on_trained("image-maps", text, split="test").add_argument
    add("--example", type=int, default=0, help="which image, numbered from 0")
    add("--patch", type=int, help="whose weights, in reading order, from 0 (the middle one)")

    text = "how alike positions become in trained models"
    add = command_on_trained("rank", text, split="valid").add_argument
    add("--examples", type=positive, default=16, help="how many inputs, spread over the split")

    add = command("collapse", "how alike positions become in deep random stacks").add_argument
    add("--positions", type=positive, default=256, help="length of the sequence")
    add("--channels", type=positive, default=128, help="channels")
    add("--depth", type=positive, default=64, help="layers")
    add("--seeds", type=positive, default=5, help="how many seeds")

    add = command("reach", "how far a value can travel under each shift strategy").add_argument
    add("--positions", type=positive, default=2000, help="length of the sequence")
    add("--channels", type=positive, default=160, help="channels of a layer")
    add("--layers", type=positive, default=6, help="layers")
    add("--group-size", type=_group_size, default=2, help="positions sorted together, or full")
    add("--order", choices=ORDERS, default=ORDERS[0], help="which step comes first")
    return parser


def main(arguments: list[str]) -> int:
    """Draw what was asked for and return the exit status.

    Raises:
        UserError: it cannot be drawn.
    """
    args = _parser().parse_args(arguments)
    if args.out.suffix != ".png":
        raise UserError(f"--out is {args.out}: its name must end in .png")
    if getattr(args, "user_dir", None):
        utils.import_user_module(args)
    if args.command == "maps":
        maps.draw(
            args.out,
            args.checkpoints,
            args.data,
            args.split,
            args.longest,
            args.example,
            args.layers,
            args.channels,
        )
    elif args.command == "image-maps":
        image_maps.draw(args.out, args.checkpoints, args.data, args.split, args.example, args.patch)
    elif args.command == "rank":
        rank.draw(args.out, args.checkpoints, args.data, args.split, args.examples)
    elif args.command == "collapse":
        if args.channels % collapse.HEADS:
            raise UserError(
                f"--channels is {args.channels}: it must be a multiple of {collapse.HEADS} heads"
            )
        collapse.draw(args.out, args.positions, args.channels, args.depth, args.seeds)
    else:
        reach.draw(
            args.out, args.positions, args.channels, args.layers, args.group_size, args.order
        )
    files = (args.out, args.out.with_suffix(".csv"))
    sys.stdout.writelines(f"{printable(file)}\n" for file in files)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    sys.exit(main(sys.argv[1:]))
