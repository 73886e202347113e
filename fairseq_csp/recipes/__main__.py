"""The table of recipes, the command of a cell, or a check of arguments.

python -m fairseq_csp.recipes               the table, as Markdown
python -m fairseq_csp.recipes mega aan      the fairseq-train command of a cell
python -m fairseq_csp.recipes mega aan demo the same for another preset
"""

import dataclasses
import shlex
import sys
from collections.abc import Sequence

from fairseq_csp.datasets import DATASETS
from fairseq_csp.recipes.arguments import Choice, parse_arguments, usage
from fairseq_csp.recipes.flags import flags, model_names
from fairseq_csp.recipes.lra import PRESETS, stages
from fairseq_csp.recipes.recipe import Recipe


def table() -> str:
    """Return the recipes of all cells as a Markdown table."""
    columns = [field.name for field in dataclasses.fields(Recipe)]
    lines = ["| preset | model | data set | stage | " + " | ".join(columns) + " |"]
    lines.append("|" + "---|" * (len(columns) + 4))
    for preset in PRESETS:
        for model in model_names():
            for dataset in DATASETS:
                try:
                    found = stages(model, dataset, preset)
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
    for stage in stages(choice.model_name, choice.dataset_name, choice.preset):
        data = f"lra_data/{choice.data_name}" + (f"-{stage.data}" if stage.data else "")
        command = ["fairseq-train", data, "--user-dir", "fairseq_csp"]
        command += flags(choice.model_name, choice.dataset_name, stage.recipe, choice.attention)
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
    try:
        choice = parse_arguments([f"{k}={v}" for k, v in zip(keys, arguments, strict=False)])
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("\n".join(commands(choice)) + "\n")
    return 0


def _check(arguments: list[str]) -> int:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if {"-h", "--help"} & set(arguments[:end]):
        sys.stdout.write(usage())
        return 0
    try:
        parse_arguments(arguments)
    except ValueError as error:
        sys.stderr.write(f"train_lra.sh: {error} (--help tells more)\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
