"""The table of recipes, the command of a cell, or a check of arguments.

python -m fairseq_csp.recipes               the table, as Markdown
python -m fairseq_csp.recipes mega aan      the fairseq-train command of a cell
python -m fairseq_csp.recipes mega aan demo the same for another preset
python -m fairseq_csp.recipes vit cifar10   the same for image classification
"""

import dataclasses
import itertools
import shlex
import sys
from collections.abc import Sequence

from fairseq_csp.recipes.arguments import Choice, benchmark_of, parse_arguments, usage
from fairseq_csp.recipes.benchmarks import BENCHMARKS
from fairseq_csp.recipes.recipe import Recipe


def table() -> str:
    """Return the recipes of all cells as a Markdown table."""
    columns = [field.name for field in dataclasses.fields(Recipe)]
    lines = ["| preset | model | data set | stage | " + " | ".join(columns) + " |"]
    lines.append("|" + "---|" * (len(columns) + 4))
    for benchmark in BENCHMARKS.values():
        for preset, model, dataset in itertools.product(
            benchmark.presets, benchmark.models(), benchmark.datasets()
        ):
            try:
                found = benchmark.stages(model, dataset, preset)
            except ValueError:
                continue
            lines += [
                f"| {preset} | {model} | {dataset} | {stage.name} | "
                + " | ".join(_cells(model, stage.recipe, columns))
                + " |"
                for stage in found
            ]
    return "\n".join(lines) + "\n"


def _cells(model: str, recipe: Recipe, columns: Sequence[str]) -> list[str]:
    values = vars(recipe) | {"flags": " ".join(recipe.flags) or None}
    if model != "mega":
        values |= {"norm": None, "prenorm": None, "attention": None}
    return ["-" if values[column] is None else str(values[column]) for column in columns]


def commands(choice: Choice) -> list[str]:
    """Return the fairseq-train command of each stage of a cell, as a shell takes it."""
    found = []
    earlier = None
    benchmark = BENCHMARKS[choice.benchmark]
    cell = choice.model_name, choice.dataset_name
    for stage in benchmark.stages(*cell, choice.preset):
        data = f"lra_data/{choice.data_name}" + (f"-{stage.data}" if stage.data else "")
        command = ["fairseq-train", data, "--user-dir", "fairseq_csp"]
        command += benchmark.flags(*cell, stage.recipe, choice.attention)
        if earlier:
            command += ["--finetune-from-model", f"checkpoints-{earlier}/checkpoint_best.pt"]
        earlier = stage.name
        found.append(shlex.join(command))
    return found


def main(arguments: list[str]) -> int:
    """Print the table or the commands, or check arguments; return the exit status."""
    if arguments[:1] == ["--check"]:
        return _check(arguments[1:])
    if not arguments:
        sys.stdout.write(table())
        return 0
    if len(arguments) not in (2, 3):
        sys.stderr.write("usage: python -m fairseq_csp.recipes [MODEL DATASET [PRESET]]\n")
        return 2
    keys = ("model_name", "dataset_name", "preset")
    given = [f"{key}={value}" for key, value in zip(keys, arguments, strict=False)]
    if arguments[0] in BENCHMARKS["vision"].models():
        given.append("benchmark=vision")
    try:
        choice = parse_arguments(given)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("\n".join(commands(choice)) + "\n")
    return 0


def _check(arguments: list[str]) -> int:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    script = "train_lra.sh"
    try:
        benchmark = benchmark_of(arguments[:end])
        script = BENCHMARKS[benchmark].script
        if {"-h", "--help"} & set(arguments[:end]):
            sys.stdout.write(usage(benchmark))
            return 0
        parse_arguments(arguments)
    except ValueError as error:
        sys.stderr.write(f"{script}: {error} (--help tells more)\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
