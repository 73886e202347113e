"""The one table of training recipes, and the words that choose among them.

    python -m fairseq_csp.recipes               the table, as Markdown
    python -m fairseq_csp.recipes mega aan      the fairseq-train command of a cell
    python -m fairseq_csp.recipes mega aan demo the same for another preset

Only the standard library is imported here: ``train_lra.sh`` checks its words with this file before
anything is installed.

Sources: the values of the CSP authors' scripts (arXiv 2410.10914) for preset ``paper``, those of
arXiv 2209.10655, table 8, for preset ``mega``.
"""

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

if __package__:
    from fairseq_csp.datasets import DATASETS
else:  # run as a file: the package itself imports torch
    from datasets import DATASETS

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("transformer", "transformer_rope", "mega", "lstm", "flash")
PRESETS = ("paper", "mega", "demo")
DEFAULT = "default"
# at least so often a run keeps what it has
EXAMPLES_A_CHECKPOINT = 64_000


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one training run.

    Attributes:
        layers: encoder layers; None: the architecture's own.
        norm: normalisation of MEGA.
        prenorm: MEGA normalises before each block.
        attention: MEGA's own attention function.
        lr: learning rate at its highest.
        dropout: probability of dropping a model channel.
        weight_decay: of Adam.
        batch: examples of a batch.
        accumulate: batches of an update.
        updates: updates of the run.
        decay: update at which the learning rate would reach 0.
        warmup: updates of the warm-up.
        power: of the warm-up.
    """

    layers: int | None
    norm: str
    prenorm: bool
    attention: str
    lr: float
    dropout: float
    weight_decay: float
    batch: int
    accumulate: int
    updates: int
    decay: int
    warmup: int
    power: int = 1


# fmt: off
PAPER = {
    "listops": Recipe(6, "layernorm", False, "softmax", .001, .1, .01, 64, 1, 90000, 90000, 3000),
    "imdb-4000": Recipe(
        4, "scalenorm", False, "softmax", .004, .1, .01, 25, 2, 25000, 25000, 10000
    ),
    "aan": Recipe(6, "scalenorm", False, "softmax", .006, .1, .04, 8, 8, 20000, 91960, 10000),
    "cifar10": Recipe(8, "batchnorm", True, "laplace", .01, 0, .02, 50, 1, 180000, 180000, 9000),
    "pathfinder": Recipe(
        6, "batchnorm", True, "laplace", .03, .1, .01, 64, 1, 250000, 250000, 50000
    ),
    "path-x": Recipe(
        4, "syncbatchnorm", True, "laplace", .01, .5, .01, 60, 8, 125000, 125000, 25000, power=2
    ),
}
# where MEGA's own values differ; path-x: 2 examples on each of 8 GPUs, 8 times
MEGA_OWN = {
    "aan": {"lr": .003, "updates": 91960},
    "pathfinder": {"lr": .01, "dropout": 0, "batch": 128},
    "path-x": {"dropout": 0, "batch": 2, "accumulate": 64},
}
# ours: no recipe was published for these; the schedule is MEGA's, the rate what each one bears
OTHER_RATES = {"transformer": .0005, "transformer_rope": .001, "flash": .001, "lstm": .001}
# ours: for the small stand-ins of `preprocess --demo`, minutes on 2 CPU cores
DEMO = {
    "listops": {"lr": .004, "batch": 32, "updates": 400, "warmup": 40},
    "imdb-4000": {"layers": 2, "lr": .004, "batch": 32, "updates": 80, "warmup": 10},
    "aan": {"layers": 2, "lr": .004, "batch": 32, "updates": 80, "warmup": 10},
    "cifar10": {"layers": 2, "lr": .004, "batch": 16, "updates": 80, "warmup": 10},
    "pathfinder": {"layers": 2, "lr": .004, "batch": 16, "updates": 80, "warmup": 10},
    "path-x": {
        "layers": 2, "norm": "batchnorm", "lr": .004, "batch": 8, "updates": 60, "warmup": 10
    },
}
# fmt: on


def recipe(model: str, dataset: str, preset: str = "paper") -> Recipe:
    """Return the recipe of a cell.

    Args:
        model: one of ``MODELS``.
        dataset: one of ``DATASETS``.
        preset: one of ``PRESETS``.
    """
    dataset = DATASETS[dataset].like or dataset
    values = PAPER[dataset]
    if model in OTHER_RATES:
        values = dataclasses.replace(values, layers=None, lr=OTHER_RATES[model])
    if preset == "mega":
        own = MEGA_OWN.get(dataset, {})
        kept = {key: own[key] for key in own if key != "lr" or model == "mega"}
        values = dataclasses.replace(values, **kept)
    if preset == "demo":
        demo = dict(DEMO[dataset])
        if model in OTHER_RATES:
            demo["lr"] = OTHER_RATES[model]
        values = dataclasses.replace(
            values, **demo, dropout=0.1, accumulate=1, power=1, decay=demo["updates"]
        )
    return values


def architecture(model: str, dataset: str) -> str:
    """Return the name of a cell's architecture."""
    return f"{model}_lra_{DATASETS[dataset].suffix}"


def flags(model: str, dataset: str, preset: str = "paper", attention: str = DEFAULT) -> list[str]:
    """Return the fairseq-train flags of a cell, data directory and output left out.

    Args:
        model: one of ``MODELS``.
        dataset: one of ``DATASETS``.
        preset: one of ``PRESETS``.
        attention: a registered attention function, or ``default`` for the architecture's own.
    """
    values = recipe(model, dataset, preset)
    data = DATASETS[dataset]
    named = {
        "task": data.task,
        "arch": architecture(model, dataset),
        "criterion": "lra_cross_entropy",
        "sen-rep-type": "mp",
        "dropout": values.dropout,
        "optimizer": "adam",
        "adam-betas": "(0.9, 0.98)",
        "adam-eps": 1e-8,
        "weight-decay": values.weight_decay,
        "clip-norm": 1.0,
        "lr-scheduler": "linear_decay",
        "lr": values.lr,
        "warmup-init-lr": 1e-7,
        "warmup-updates": values.warmup,
        "warmup-power": values.power,
        "total-num-update": values.decay,
        "end-learning-rate": 0,
        "max-update": values.updates,
        "batch-size": values.batch,
        "update-freq": values.accumulate,
        "best-checkpoint-metric": "accuracy",
        "save-interval-updates": EXAMPLES_A_CHECKPOINT // (values.batch * values.accumulate),
        "keep-interval-updates": 1,
    }
    if attention != DEFAULT:
        named["attention"] = attention
    if values.layers is not None:
        named["encoder-layers"] = values.layers
    if model == "mega":
        named |= {"norm-type": values.norm, "n-dim": 16, "chunk-size": -1}
        named["attention-activation-fn"] = values.attention
    words = [word for key, value in named.items() for word in (f"--{key}", f"{value}")]
    if data.pixels:
        words += ["--pixel-normalization", *map(str, data.pixels)]
    if model == "mega" and values.prenorm:
        words.append("--encoder-normalize-before")
    return [*words, "--maximize-best-checkpoint-metric", "--no-epoch-checkpoints"]


def attention_names() -> list[str]:
    """Return the registered names, which are those of the files that register them."""
    folder = ROOT / "fairseq_csp" / "modules" / "attention"
    return sorted(file.stem for file in folder.glob("[!_]*.py"))


@dataclass(frozen=True)
class Choice:
    """What the words of ``train_lra.sh`` ask for.

    Attributes:
        model_name: one of ``MODELS``.
        dataset_name: one of ``DATASETS``.
        attention: a registered attention function, or ``default``.
        data_dir: directory of the prepared data; None: the data set's own in ``lra_data``.
        save_dir: directory of the run; None: a new one in ``outputs``.
        seed: of weights, order and dropout.
        preset: one of ``PRESETS``.
        gpus: GPUs to use; None: one where there is one.
        resume: go on with the newest run of this cell.
        extra: further flags for fairseq-train.
    """

    model_name: str
    dataset_name: str
    attention: str
    data_dir: str | None
    save_dir: str | None
    seed: int
    preset: str
    gpus: int | None
    resume: bool
    extra: tuple[str, ...]

    @property
    def data_name(self) -> str:
        """The data set's name, which tells its small stand-in from itself."""
        return self.dataset_name + ("-demo" if self.preset == "demo" else "")


USAGE = """\
Train a model on an LRA data set, then test its best checkpoint.

    bash train_lra.sh model_name=MODEL dataset_name=DATASET [KEY=VALUE ...] [-- FLAG ...]

    model_name    {models}
    dataset_name  {datasets}
    attention     {attentions} (default: csp), or default for
                  the architecture's own; lstm has none
    preset        paper (default; the CSP authors' recipe), mega (MEGA's own), or demo (small data,
                  minutes on a laptop)
    data_dir      the prepared data (default: lra_data/DATASET, or lra_data/DATASET-demo)
    save_dir      where the run is kept (default: outputs/DATASET/ARCHITECTURE-ATTENTION/TIME, with
                  DATASET-demo for demo); a run that is there is resumed
    resume        yes: go on with the newest run of this model and data set (default: no)
    seed          a number (default: 0)
    gpus          how many GPUs (default: 1 where there is one; 0: CPU)

What follows -- goes to fairseq-train as it is, and wins. Data that is not there is prepared first,
where it can be.

Examples:
    bash train_lra.sh model_name=mega dataset_name=listops preset=demo
    bash train_lra.sh model_name=mega dataset_name=listops attention=default seed=1
    bash train_lra.sh model_name=mega dataset_name=aan -- --fp16 --log-interval 10
"""


def usage() -> str:
    """Return the help text of ``train_lra.sh``."""
    return USAGE.format(
        models=", ".join(MODELS),
        datasets=", ".join(DATASETS),
        attentions=", ".join(attention_names()),
    )


def parse_words(words: list[str]) -> Choice:
    """Read the words of ``train_lra.sh``.

    Args:
        words: ``key=value`` words, then perhaps ``--`` and flags.

    Raises:
        ValueError: a key or value is unknown or missing; the message lists the valid ones.
    """
    end = words.index("--") if "--" in words else len(words)
    keys = [field.name for field in dataclasses.fields(Choice) if field.name != "extra"]
    given: dict[str, str] = {}
    for word in words[:end]:
        key, equals, value = word.partition("=")
        if key not in keys:
            raise ValueError(f"{key!r} is no key; the keys are {', '.join(keys)}")
        if not equals or not value:
            raise ValueError(f"{key} has no value; write {key}=VALUE")
        if key in given:
            raise ValueError(f"{key} is given twice; give it once")
        if "${" in value:
            raise ValueError(
                f"{key} has ${{ in it, which fairseq would replace; choose another name"
            )
        given[key] = value

    model = _one_of(given, "model_name", MODELS)
    dataset = _one_of(given, "dataset_name", tuple(DATASETS))
    valid = (DEFAULT,) if model == "lstm" else (*attention_names(), DEFAULT)
    extra = tuple(words[end + 1 :])
    for flag, key in (("--save-dir", "save_dir"), ("--user-dir", None)):
        if any(word == flag or word.startswith(flag + "=") for word in extra):
            raise ValueError(f"{flag} cannot be changed here" + (f"; write {key}=" if key else ""))
    return Choice(
        model_name=model,
        dataset_name=dataset,
        attention=_one_of(given, "attention", valid, DEFAULT if model == "lstm" else "csp"),
        data_dir=given.get("data_dir"),
        save_dir=given.get("save_dir"),
        seed=_number(given, "seed") or 0,
        preset=_one_of(given, "preset", PRESETS, "paper"),
        gpus=_number(given, "gpus"),
        resume=_one_of(given, "resume", ("yes", "no"), "no") == "yes",
        extra=extra,
    )


def _one_of(
    given: dict[str, str], key: str, valid: tuple[str, ...], default: str | None = None
) -> str:
    value = given.get(key, default)
    if value is None:
        raise ValueError(f"{key} is missing; it is one of {', '.join(valid)}")
    if value not in valid:
        raise ValueError(f"{key} is {value!r}; it must be one of {', '.join(valid)}")
    return value


def _number(given: dict[str, str], key: str) -> int | None:
    value = given.get(key)
    if value is not None and not value.isdecimal():
        raise ValueError(f"{key} is {value!r}; it must be a number of at least 0")
    return None if value is None else int(value)


def table() -> str:
    """Return the recipes of all cells as a Markdown table."""
    columns = [field.name for field in dataclasses.fields(Recipe)]
    lines = ["| preset | model | data set | " + " | ".join(columns) + " |"]
    lines.append("|" + "---|" * (len(columns) + 3))
    for preset in PRESETS:
        for model in MODELS:
            for dataset in DATASETS:
                values = dataclasses.asdict(recipe(model, dataset, preset))
                if model != "mega":
                    values |= {"norm": None, "prenorm": None, "attention": None}
                cells = [
                    "-" if values[column] is None else str(values[column]) for column in columns
                ]
                lines.append("| " + " | ".join([preset, model, dataset, *cells]) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Print the table or a command, or check words; return the exit status."""
    if arguments[:1] == ["--words"]:
        words = arguments[1:]
        if {"-h", "--help"} & set(words):
            sys.stdout.write(usage())
            return 0
        try:
            parse_words(words)
        except ValueError as error:
            sys.stderr.write(f"train_lra.sh: {error} (--help tells more)\n")
            return 2
        return 0
    if not arguments:
        sys.stdout.write(table())
        return 0
    if len(arguments) not in (2, 3):
        sys.stderr.write("usage: python -m fairseq_csp.recipes [MODEL DATASET [PRESET]]\n")
        return 2
    keys = ("model_name", "dataset_name", "preset")
    try:
        choice = parse_words([f"{k}={v}" for k, v in zip(keys, arguments, strict=False)])
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    words = flags(choice.model_name, choice.dataset_name, choice.preset, choice.attention)
    command = ["fairseq-train", f"lra_data/{choice.data_name}", "--user-dir", "fairseq_csp"]
    sys.stdout.write(shlex.join([*command, *words]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
