"""The recipes of image classification.

Preset ``paper`` is that of the vision half of the CSP authors' code (arXiv 2410.10914): all
training images, the best epoch chosen on the test images, a rate that falls along a cosine; there
once an epoch, here with each update. ``default`` holds a tenth of the training images out to choose
the epoch, and tests once. ``demo`` is for the generated stand-ins: minutes on two cores;
``laptop`` for a first comparison on the real CIFAR-10: minutes on one.
"""

from collections.abc import Mapping
from dataclasses import replace

from fairseq_csp.datasets import IMAGE_SETS, DataSet
from fairseq_csp.recipes.flags import DEFAULT, EXAMPLES_A_CHECKPOINT
from fairseq_csp.recipes.recipe import Recipe, Stage

BATCH = 64
EPOCHS = 100
# images of the sets that the paper's recipe was published for, none held out
PAPER_IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "mnist": 60_000}
# of a set of any size: about ten epochs of 64,000 images
FOLDER_UPDATES = 10_000
PUBLISHED_SPLITS = ("--train-subset", "train+valid", "--valid-subset", "test")
DEMO_SIZES = (
    *("--encoder-layers", "2", "--encoder-embed-dim", "64", "--encoder-ffn-embed-dim", "128"),
    *("--encoder-attention-heads", "2", "--head-dim", "32"),
)
LAPTOP = "cifar10"
LAPTOP_EPOCHS = 2
DEMO_FOLDER = ("--crop-size", "48", "--patch-size", "8")


def data_sets() -> Mapping[str, DataSet]:
    """Return the data sets by the names that ``train_vit.sh`` has for them."""
    return {name.removesuffix("-rgb"): entry for name, entry in IMAGE_SETS.items()}


def model_names() -> tuple[str, ...]:
    """Return the families of models."""
    return ("vit",)


def paper(model: str, dataset: str) -> tuple[Stage, ...]:
    """Return the published recipe.

    Raises:
        ValueError: none was published for this data set.
    """
    if dataset not in PAPER_IMAGES:
        raise ValueError(
            f"preset=paper has no recipe for {dataset}; it has one for {', '.join(PAPER_IMAGES)}"
        )
    mean, std = (
        ",".join(map(str, numbers))  # type: ignore[arg-type]
        for numbers in data_sets()[dataset].pixels
    )
    flags = (*PUBLISHED_SPLITS, "--pixel-mean", mean, "--pixel-std", std)
    return _one_stage(_recipe(PAPER_IMAGES[dataset], flags=flags))


def default(model: str, dataset: str) -> tuple[Stage, ...]:
    """Return the published schedule, on the images that are not held out."""
    images = data_sets()[dataset].counts.get("train")
    if images is None:
        return _one_stage(_recipe(FOLDER_UPDATES * BATCH, epochs=1))
    return _one_stage(_recipe(images))


def demo(model: str, dataset: str) -> tuple[Stage, ...]:
    """Return the recipe of the small stand-in."""
    flags: tuple[str, ...] = DEMO_SIZES
    updates = 300
    if dataset == "image-folder":
        flags, updates = flags + DEMO_FOLDER, 150
    recipe = Recipe(
        lr=0.002, dropout=0, batch=32, updates=updates, decay=updates, warmup=20, flags=flags
    )
    return _one_stage(recipe)


def laptop(model: str, dataset: str) -> tuple[Stage, ...]:
    """Return the recipe of a small model and few epochs, which a processor trains in minutes.

    Raises:
        ValueError: there is none for this data set.
    """
    if dataset != LAPTOP:
        raise ValueError(f"preset=laptop has no recipe for {dataset}; it has one for {LAPTOP}")
    recipe = _recipe(data_sets()[dataset].counts["train"], epochs=LAPTOP_EPOCHS)
    return _one_stage(
        replace(
            recipe,
            arch=f"{model}_cifar_small",
            lr=1e-3,
            dropout=0,
            warmup=100,
            bfloat16=True,
            save_interval=recipe.updates // (2 * LAPTOP_EPOCHS),
        )
    )


PRESETS = {"default": default, "paper": paper, "demo": demo, "laptop": laptop}


def flags(model: str, dataset: str, recipe: Recipe, attention: str) -> list[str]:
    """Return the fairseq-train flags of a training, data directory and output left out.

    Args:
        model: a family of models.
        dataset: a name of :func:`data_sets`.
        recipe: the hyper-parameters.
        attention: a registered attention function, or ``default`` for the architecture's own.
    """
    entry = data_sets()[dataset]
    named = {
        "task": entry.task,
        "arch": recipe.arch or f"{model}_{entry.suffix}",
        "criterion": "image_cross_entropy",
        "sen-rep-type": "mp",
        "dropout": recipe.dropout,
        "embedding-dropout": recipe.dropout,
        "optimizer": "adam",
        "adam-betas": "(0.9, 0.999)",
        "adam-eps": 1e-8,
        "weight-decay": recipe.weight_decay,
        "clip-norm": 0,
        "lr-scheduler": "cosine",
        "lr": recipe.lr,
        "warmup-updates": recipe.warmup,
        # past its period the rate would begin anew
        "lr-period-updates": recipe.decay - recipe.warmup,
        "max-update": recipe.updates,
        "batch-size": recipe.batch,
        "update-freq": recipe.accumulate,
        "best-checkpoint-metric": "accuracy",
    }
    if attention != DEFAULT:
        named["attention"] = attention
    interval = recipe.save_interval
    if not entry.counts:
        # an epoch of a set of any size may take days
        interval = EXAMPLES_A_CHECKPOINT // (recipe.batch * recipe.accumulate)
    if interval is not None:
        named |= {"save-interval-updates": interval, "keep-interval-updates": 1}
    arguments = [part for key, value in named.items() for part in (f"--{key}", f"{value}")]
    return [*arguments, "--maximize-best-checkpoint-metric", "--no-epoch-checkpoints"] + list(
        recipe.flags
    )


def _recipe(images: int, *, epochs: int = EPOCHS, flags: tuple[str, ...] = ()) -> Recipe:
    updates = epochs * -(-images // BATCH)
    return Recipe(
        lr=1e-4, dropout=0.1, batch=BATCH, updates=updates, decay=updates, warmup=0, flags=flags
    )


def _one_stage(recipe: Recipe) -> tuple[Stage, ...]:
    return (Stage(name="all", recipe=recipe),)
