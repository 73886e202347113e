"""The recipes of the Long Range Arena.

Sources: the values of the CSP authors' scripts (arXiv 2410.10914) for preset ``paper``, those of
arXiv 2209.10655, table 8, for preset ``mega``; ``demo``, ``small`` and ``laptop`` are ours.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from fairseq_csp.datasets import DATASETS
from fairseq_csp.recipes.recipe import LAST_DATA, Recipe, Stage

PAPER = {
    "listops": Recipe(
        layers=6,
        norm="layernorm",
        prenorm=False,
        attention="softmax",
        lr=0.001,
        dropout=0.1,
        weight_decay=0.01,
        batch=64,
        accumulate=1,
        updates=90_000,
        decay=90_000,
        warmup=3_000,
    ),
    "imdb-4000": Recipe(
        layers=4,
        norm="scalenorm",
        prenorm=False,
        attention="softmax",
        lr=0.004,
        dropout=0.1,
        weight_decay=0.01,
        batch=25,
        accumulate=2,
        updates=25_000,
        decay=25_000,
        warmup=10_000,
    ),
    "aan": Recipe(
        layers=6,
        norm="scalenorm",
        prenorm=False,
        attention="softmax",
        lr=0.006,
        dropout=0.1,
        weight_decay=0.04,
        batch=8,
        accumulate=8,
        updates=20_000,
        decay=91_960,
        warmup=10_000,
    ),
    "cifar10": Recipe(
        layers=8,
        norm="batchnorm",
        prenorm=True,
        attention="laplace",
        lr=0.01,
        dropout=0,
        weight_decay=0.02,
        batch=50,
        accumulate=1,
        updates=180_000,
        decay=180_000,
        warmup=9_000,
    ),
    "pathfinder": Recipe(
        layers=6,
        norm="batchnorm",
        prenorm=True,
        attention="laplace",
        lr=0.03,
        dropout=0.1,
        weight_decay=0.01,
        batch=64,
        accumulate=1,
        updates=250_000,
        decay=250_000,
        warmup=50_000,
    ),
    "path-x": Recipe(
        layers=4,
        norm="syncbatchnorm",
        prenorm=True,
        attention="laplace",
        lr=0.01,
        dropout=0.5,
        weight_decay=0.01,
        batch=60,
        accumulate=8,
        updates=125_000,
        decay=125_000,
        warmup=25_000,
        power=2,
    ),
}
# where MEGA's own values differ; path-x: 2 examples on each of 8 GPUs, 8 times
MEGA: dict[str, dict[str, Any]] = {
    "aan": {"lr": 0.003, "updates": 91_960},
    "pathfinder": {"lr": 0.01, "dropout": 0, "batch": 128},
    "path-x": {"dropout": 0, "batch": 2, "accumulate": 64},
}
# no recipe was published for the other families; the schedule is MEGA's, the rate what each bears,
# that of transformer_rope what was best on valid (python -m fairseq_csp.ablations rope)
OTHER_RATES = {"transformer": 0.0005}
OTHER_RATE = 0.001
# for the small stand-ins of `preprocess --demo`, minutes on 2 CPU cores
DEMO: dict[str, dict[str, Any]] = {
    "listops": {"lr": 0.004, "batch": 32, "updates": 400, "warmup": 40},
    "imdb-4000": {"layers": 2, "lr": 0.004, "batch": 32, "updates": 80, "warmup": 10},
    "aan": {"layers": 2, "lr": 0.004, "batch": 32, "updates": 80, "warmup": 10},
    "cifar10": {"layers": 2, "lr": 0.004, "batch": 16, "updates": 80, "warmup": 10},
    "pathfinder": {"layers": 2, "lr": 0.004, "batch": 16, "updates": 80, "warmup": 10},
    "path-x": {
        "layers": 2,
        "norm": "batchnorm",
        "lr": 0.004,
        "batch": 8,
        "updates": 60,
        "warmup": 10,
    },
}
# of real data few and small examples, a minute or two on a CPU core: name of the data, how they
# are prepared, and the recipe
SMALL: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "cifar10": (
        "16x16",
        ("--side", "16", "--limit", "2000"),
        {
            **{"layers": 2, "lr": 0.004, "batch": 32, "updates": 150, "warmup": 15},
            "flags": ("--max-positions", "256", "--validate-interval", "1000"),
        },
    ),
}
# the architecture's own 512 channels would take a core 20 minutes
DEMO_SIZES: dict[str, dict[str, Any]] = {
    "transformer": {
        "layers": 2,
        "flags": (
            *("--encoder-embed-dim", "128", "--encoder-ffn-embed-dim", "256"),
            *("--encoder-attention-heads", "4"),
        ),
    },
}
# narrower and shallower, so that a core sees enough images
_SMALL_IMAGES = (
    *("--encoder-embed-dim", "64", "--encoder-hidden-dim", "128"),
    *("--encoder-ffn-embed-dim", "128", "--z-dim", "32"),
)
# the stages of a text set share the dictionaries of the last one's data
_SHARED = ("--dictionaries", LAST_DATA)
# for hours of a processor: from short texts and easy images to those of the task (docs/results.md)
LAPTOP: dict[str, list[dict[str, Any]]] = {
    "listops": [
        {
            "name": "short",
            "preparation": ("--min-length", "10", "--max-length", "100", *_SHARED),
            "recipe": {"lr": 0.003, "batch": 256, "updates": 2_000, "decay": 2_500},
            "flags": ("--max-tokens", "40000"),
        },
        {
            "name": "medium",
            "preparation": ("--min-length", "100", "--max-length", "500", *_SHARED),
            "recipe": {"lr": 0.002, "batch": 32, "updates": 2_000, "decay": 3_000},
        },
        {
            "name": "full",
            "recipe": {"lr": 0.001, "batch": 16, "updates": 2_500, "decay": 2_500},
            "flags": ("--max-valid-steps", "60"),
        },
    ],
    "imdb-4000": [
        {
            "name": "first-512",
            "preparation": ("--holdout", "0.1", "--cut", "512", *_SHARED),
            "recipe": {"lr": 0.0004, "batch": 16, "updates": 1_000, "decay": 20_000},
        },
        {
            "name": "first-512-faster",
            "preparation": ("--holdout", "0.1", "--cut", "512", *_SHARED),
            "data": "first-512",
            "recipe": {"lr": 0.001, "batch": 16, "updates": 1_800, "decay": 20_000},
        },
        {
            "name": "whole",
            "preparation": ("--holdout", "0.1"),
            "data": "holdout",
            "recipe": {
                "lr": 0.001,
                "dropout": 0.1,
                "batch": 10,
                "updates": 6_750,
                "decay": 6_750,
            },
        },
    ],
    "cifar10": [
        {
            "name": "all",
            "recipe": {"layers": 4, "lr": 0.01, "batch": 50, "updates": 9_000, "decay": 9_000},
            "flags": _SMALL_IMAGES,
        },
    ],
    "pathfinder": [
        {
            "name": "easy",
            "preparation": ("--generate", "--level", "easy", "--limit", "40000"),
            "recipe": {
                **{"layers": 4, "lr": 0.001, "warmup": 500, "batch": 16},
                **{"updates": 3_500, "decay": 7_000},
            },
            "flags": (*_SMALL_IMAGES, "--max-valid-steps", "125"),
        },
        {
            "name": "hard",
            "recipe": {"layers": 4, "lr": 0.0006, "batch": 16, "updates": 22_000, "decay": 22_000},
            "flags": (*_SMALL_IMAGES, "--max-valid-steps", "125"),
        },
    ],
}


def paper(model: str, dataset: str) -> tuple[Stage, ...]:
    """Return the CSP authors' recipe."""
    return _one_stage(_base(model, dataset))


def mega(model: str, dataset: str) -> tuple[Stage, ...]:
    """Return MEGA's own recipe, the CSP authors' where that differs in nothing."""
    changes = MEGA.get(dataset, {})
    kept = {key: changes[key] for key in changes if key != "lr" or model == "mega"}
    return _one_stage(replace(_base(model, dataset), **kept))


def demo(model: str, dataset: str) -> tuple[Stage, ...]:
    """Return the recipe of the small stand-in."""
    return _one_stage(_short(model, dataset, DEMO[dataset] | DEMO_SIZES.get(model, {})))


def small(model: str, dataset: str) -> tuple[Stage, ...]:
    """Return the recipe of few and small real examples.

    Raises:
        ValueError: there is none for this data set.
    """
    _check_has("small", SMALL, dataset)
    data, preparation, changes = SMALL[dataset]
    recipe = _short(model, dataset, changes)
    return (Stage(name="all", recipe=recipe, data=data, preparation=preparation),)


def laptop(model: str, dataset: str) -> tuple[Stage, ...]:
    """Return the stages that a processor can train; the rates are those that were tried with CSP.

    Raises:
        ValueError: there is none for this data set.
    """
    _check_has("laptop", LAPTOP, dataset)
    found = []
    for stage in LAPTOP[dataset]:
        preparation = stage.get("preparation", ())
        recipe = replace(
            _base(model, dataset),
            **{"dropout": 0, "accumulate": 1, "power": 1, "warmup": 200, **stage["recipe"]},
            flags=stage.get("flags", ()),
            bfloat16=True,
            # a laptop is switched off more often than a server
            save_interval=stage["recipe"]["updates"] // 10,
        )
        data = stage.get("data", stage["name"] if preparation else "")
        found.append(Stage(name=stage["name"], recipe=recipe, data=data, preparation=preparation))
    return tuple(found)


PRESETS = {"paper": paper, "mega": mega, "demo": demo, "small": small, "laptop": laptop}


def stages(model: str, dataset: str, preset: str = "paper") -> tuple[Stage, ...]:
    """Return the stages of a cell, most often one.

    Args:
        model: a family.
        dataset: a data set of ``DATASETS``.
        preset: one of ``PRESETS``.
    """
    return PRESETS[preset](model, DATASETS[dataset].like or dataset)


def _one_stage(recipe: Recipe) -> tuple[Stage, ...]:
    return (Stage(name="all", recipe=recipe),)


def _short(model: str, dataset: str, changes: dict[str, Any]) -> Recipe:
    """Return the recipe with these changes; families other than MEGA keep their learning rate."""
    if model != "mega":
        changes = changes | {"lr": _rate(model)}
    schedule = {"accumulate": 1, "power": 1, "decay": changes["updates"]}
    return replace(_base(model, dataset), **changes, **schedule, dropout=0.1)


def _check_has(preset: str, table: Collection[str], dataset: str) -> None:
    if dataset not in table:
        raise ValueError(
            f"preset={preset} has no recipe for {dataset}; it has one for {', '.join(table)}"
        )


def _rate(model: str) -> float:
    return OTHER_RATES.get(model, OTHER_RATE)


def _base(model: str, dataset: str) -> Recipe:
    if model == "mega":
        return PAPER[dataset]
    return replace(PAPER[dataset], layers=None, lr=_rate(model))
