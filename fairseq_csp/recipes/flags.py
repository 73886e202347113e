"""From a recipe to the flags of fairseq-train."""

from pathlib import Path

from fairseq_csp.datasets import DATASETS
from fairseq_csp.recipes.recipe import Recipe

PACKAGE = Path(__file__).resolve().parent.parent
ROOT = PACKAGE.parent
DEFAULT = "default"
# at least so often a run keeps what it has
EXAMPLES_A_CHECKPOINT = 64_000


def file_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the modules in a folder, which are those that they register."""
    return tuple(sorted(file.stem for file in folder.glob("[!_]*.py")))


def model_names() -> tuple[str, ...]:
    """Return the families of encoders."""
    return file_names(PACKAGE / "models" / "families")


def attention_names() -> tuple[str, ...]:
    """Return the attention functions."""
    return file_names(PACKAGE / "modules" / "attention")


def architecture(model: str, dataset: str) -> str:
    """Return the name of a cell's architecture."""
    return f"{model}_lra_{DATASETS[dataset].suffix}"


def flags(model: str, dataset: str, recipe: Recipe, attention: str = DEFAULT) -> list[str]:
    """Return the fairseq-train flags of a training, data directory and output left out.

    Args:
        model: a family.
        dataset: a data set of ``DATASETS``.
        recipe: the hyper-parameters.
        attention: a registered attention function, or ``default`` for the architecture's own.
    """
    data = DATASETS[dataset]
    named = {
        "task": data.task,
        "arch": architecture(model, dataset),
        "criterion": "lra_cross_entropy",
        "sen-rep-type": "mp",
        "dropout": recipe.dropout,
        "optimizer": "adam",
        "adam-betas": "(0.9, 0.98)",
        "adam-eps": 1e-8,
        "weight-decay": recipe.weight_decay,
        "clip-norm": 1.0,
        "lr-scheduler": "linear_decay",
        "lr": recipe.lr,
        "warmup-init-lr": 1e-7,
        "warmup-updates": recipe.warmup,
        "warmup-power": recipe.power,
        "total-num-update": recipe.decay,
        "end-learning-rate": 0,
        "max-update": recipe.updates,
        "batch-size": recipe.batch,
        "update-freq": recipe.accumulate,
        "best-checkpoint-metric": "accuracy",
        "save-interval-updates": recipe.save_interval
        or EXAMPLES_A_CHECKPOINT // (recipe.batch * recipe.accumulate),
        "keep-interval-updates": 1,
    }
    if attention != DEFAULT:
        named["attention"] = attention
    if recipe.layers is not None:
        named["encoder-layers"] = recipe.layers
    if model == "mega":
        named |= {"norm-type": recipe.norm, "n-dim": 16, "chunk-size": -1}
        if attention == DEFAULT:
            named["attention-activation-fn"] = recipe.attention
    arguments = [part for key, value in named.items() for part in (f"--{key}", f"{value}")]
    if data.pixels:
        arguments += ["--pixel-normalization", *map(str, data.pixels)]
    if model == "mega" and recipe.prenorm:
        arguments.append("--encoder-normalize-before")
    return [*arguments, "--maximize-best-checkpoint-metric", "--no-epoch-checkpoints"] + list(
        recipe.flags
    )
