"""The arguments of ``train_lra.sh`` and ``train_vit.sh``."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairseq_csp.recipes.benchmarks import BENCHMARKS
from fairseq_csp.recipes.flags import DEFAULT, attention_names, file_names

# the seeds that numpy takes
MOST_SEED = 2**32 - 1
# bytes that a file system takes as one name, and as a path
LONGEST_NAME, LONGEST_PATH = 255, 4_000

_LRA_USAGE = """\
Train a model on an LRA data set, then test its best checkpoint.

    bash train_lra.sh model_name=MODEL dataset_name=DATASET [KEY=VALUE ...] [-- FLAG ...]

    model_name    {models}
    dataset_name  {datasets}
    attention     {attentions} (default: csp), or default for
                  the architecture's own; lstm has none
    preset        paper (default; the CSP authors' recipe), mega (MEGA's own), demo (small data,
                  minutes on a laptop), small (cifar10: few real images of 16 x 16 pixels, minutes
                  on a processor), or laptop (hours on a processor, from short texts or easy images
                  to those of the task; listops, imdb-4000, cifar10, pathfinder)
    data_dir      the prepared data (default: lra_data/DATASET, or lra_data/DATASET-demo)
    save_dir      where the run is kept (default: outputs/DATASET/ARCHITECTURE-ATTENTION/TIME, with
                  DATASET-demo for demo); a run that is there is resumed
    resume        yes: go on with the newest run of this model and data set (default: no)
    download      yes: download the data set's raw file where it is not there (default: ask on a
                  terminal, else no)
    seed          a number up to {most_seed} (default: 0)
    gpus          how many GPUs (default: 1 where there is one; 0: CPU)
    user_dir      a user directory of your own, whose attention functions, families and data sets
                  can be named too; its __init__.py imports fairseq_csp

What follows -- goes to fairseq-train as it is, and wins. Data that is not there is prepared first,
where it can be.

Examples:
    bash train_lra.sh model_name=mega dataset_name=listops preset=demo
    bash train_lra.sh model_name=mega dataset_name=listops attention=default seed=1
    bash train_lra.sh model_name=mega dataset_name=aan -- --fp16 --log-interval 10
"""
_VISION_USAGE = """\
Train a Vision Transformer to classify images, then test its best checkpoint.

    bash train_vit.sh model_name=MODEL dataset_name=DATASET [KEY=VALUE ...] [-- FLAG ...]

    model_name    {models}
    dataset_name  {datasets}
    attention     {attentions}
                  (default: csp), or default for the architecture's own, softmax
    preset        default (a tenth of the training images is held out to choose the epoch; tested
                  once), paper (as published: trained on all images, the epoch chosen on the test
                  images), demo (small generated data, minutes on a laptop), or laptop (cifar10: a
                  small model, two epochs, minutes on a processor)
    data_dir      the prepared data (default: lra_data/DATASET, or lra_data/DATASET-demo)
    save_dir      where the run is kept (default: outputs/DATASET/ARCHITECTURE-ATTENTION/TIME, with
                  DATASET-demo for demo); a run that is there is resumed
    resume        yes: go on with the newest run of this model and data set (default: no)
    download      yes: download the data set's raw file where it is not there (default: ask on a
                  terminal, else no)
    seed          a number up to {most_seed} (default: 0)
    gpus          how many GPUs (default: 1 where there is one; 0: CPU)
    user_dir      a user directory of your own, whose attention functions and data sets can be named
                  too; its __init__.py imports fairseq_csp

What follows -- goes to fairseq-train as it is, and wins. Data that is not there is prepared first,
where it can be; cifar10 is what `python -m preprocess cifar10-rgb` makes.

Examples:
    bash train_vit.sh model_name=vit dataset_name=cifar10 preset=demo
    bash train_vit.sh model_name=vit dataset_name=cifar10 attention=softmax preset=paper
    bash train_vit.sh model_name=vit dataset_name=cifar10 -- --arch vit_cifar_small --bf16
"""
_USAGE = {"lra": _LRA_USAGE, "vision": _VISION_USAGE}


@dataclass(frozen=True)
class Choice:
    """What the arguments of a script ask for.

    Attributes:
        benchmark: one of ``BENCHMARKS``.
        model_name: a family of encoders.
        dataset_name: one of the benchmark's data sets.
        attention: a registered attention function, or ``default``.
        data_dir: directory of the prepared data; None: the data set's own in ``lra_data``.
        save_dir: directory of the run; None: a new one in ``outputs``.
        seed: of weights, order and dropout.
        preset: one of the benchmark's.
        gpus: GPUs to use; None: one where there is one.
        resume: go on with the newest run of this cell.
        download: get raw data that is not there; None: ask, if there is somebody to ask.
        user_dir: a user directory of somebody's own; None: this package.
        extra: further flags for fairseq-train.
    """

    benchmark: str
    model_name: str
    dataset_name: str
    attention: str
    data_dir: str | None
    save_dir: str | None
    seed: int
    preset: str
    gpus: int | None
    resume: bool
    download: bool | None
    user_dir: str | None
    extra: tuple[str, ...]

    @property
    def data_set(self) -> str:
        """The data set's name for ``python -m preprocess``."""
        known = BENCHMARKS[self.benchmark].datasets()
        return known[self.dataset_name].name if self.dataset_name in known else self.dataset_name

    @property
    def data_name(self) -> str:
        """The data set's name, which tells its small stand-in from itself."""
        return self.data_set + ("-demo" if self.preset == "demo" else "")


@dataclass(frozen=True)
class Known:
    """The names that can be chosen.

    Attributes:
        models: families of encoders.
        attentions: attention functions.
        datasets: data sets.
        theirs: names of the files in a user directory; each may be one of the above, which is
            known once it is imported.
    """

    models: tuple[str, ...]
    attentions: tuple[str, ...]
    datasets: tuple[str, ...]
    theirs: tuple[str, ...] = ()


def usage(benchmark: str = "lra") -> str:
    """Return the help text of a benchmark's script."""
    chosen = BENCHMARKS[benchmark]
    return _USAGE[benchmark].format(
        models=", ".join(chosen.models()),
        datasets=", ".join(chosen.datasets()),
        attentions=_wrapped(attention_names()),
        most_seed=f"{MOST_SEED:,}",
    )


def benchmark_of(arguments: Sequence[str]) -> str:
    """Return the benchmark that the arguments are for, ``lra`` where they do not say.

    Raises:
        ValueError: there is none of that name.
    """
    named = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    return _one_of(named, "benchmark", tuple(BENCHMARKS), default="lra")


def parse_arguments(arguments: Sequence[str], known: Known | None = None) -> Choice:
    """Read the arguments of a script.

    Args:
        arguments: ``key=value``, then perhaps ``--`` and flags.
        known: the names that can be chosen; None: those of this package, and of the files in the
            user directory.

    Raises:
        ValueError: a key or value is unknown, missing or out of range; the message says what is
            valid.
    """
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given = _read_keys(arguments[:end])
    benchmark = BENCHMARKS[benchmark_of(arguments)]
    user_dir = given.get("user_dir")
    if user_dir is not None and not (Path(user_dir) / "__init__.py").is_file():
        raise ValueError(f"user_dir is {user_dir!r}, which is no directory with an __init__.py")
    if known is None:
        theirs = file_names(Path(user_dir)) if user_dir is not None else ()
        datasets = tuple(benchmark.datasets())
        known = Known(benchmark.models(), attention_names(), datasets, theirs)
    model = _one_of(given, "model_name", known.models, known.theirs)
    dataset = _one_of(given, "dataset_name", known.datasets, known.theirs)
    attentions, theirs = known.attentions, known.theirs
    if model == "lstm":
        attentions, theirs = (), ()
    extra = tuple(arguments[end + 1 :])
    for flag, key in (("--save-dir", "save_dir"), ("--user-dir", "user_dir")):
        if any(one == flag or one.startswith(flag + "=") for one in extra):
            raise ValueError(f"{flag} cannot be changed here; write {key}=")
    preset = _one_of(given, "preset", tuple(benchmark.presets), default=benchmark.default_preset)
    if dataset in benchmark.datasets():
        # refuses a data set that the preset has no recipe for
        benchmark.stages(model, dataset, preset)
    for key in ("data_dir", "save_dir"):
        _check_path(key, given.get(key))
    return Choice(
        benchmark=benchmark_of(arguments),
        model_name=model,
        dataset_name=dataset,
        attention=_one_of(
            given,
            "attention",
            (*attentions, DEFAULT),
            theirs,
            default=DEFAULT if model == "lstm" else "csp",
        ),
        data_dir=given.get("data_dir"),
        save_dir=given.get("save_dir"),
        seed=_number(given, "seed", most=MOST_SEED) or 0,
        preset=preset,
        gpus=_number(given, "gpus", most=1_000),
        resume=_yes_or_no(given, "resume") or False,
        download=_yes_or_no(given, "download"),
        user_dir=user_dir,
        extra=extra,
    )


def _yes_or_no(given: dict[str, str], key: str) -> bool | None:
    return _one_of(given, key, ("yes", "no")) == "yes" if key in given else None


def _read_keys(arguments: Iterable[str]) -> dict[str, str]:
    keys = [field.name for field in dataclasses.fields(Choice) if field.name != "extra"]
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in keys:
            raise ValueError(f"unknown key {key!r}; the keys are {', '.join(keys)}")
        if not equals or not value:
            raise ValueError(f"{key} has no value; write {key}=VALUE")
        if key in given:
            raise ValueError(f"{key} is given twice; give it once")
        given[key] = value
    return given


def _one_of(
    given: dict[str, str],
    key: str,
    valid: tuple[str, ...],
    theirs: tuple[str, ...] = (),
    *,
    default: str | None = None,
) -> str:
    value = given.get(key, default)
    names = ", ".join((*valid, *(name for name in theirs if name not in valid)))
    if value is None:
        raise ValueError(f"{key} is missing; it is one of {names}")
    if value not in valid and value not in theirs:
        raise ValueError(f"{key} is {value!r}; it must be one of {names}")
    return value


def _number(given: dict[str, str], key: str, *, most: int) -> int | None:
    value = given.get(key)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= len(str(most))):
        raise ValueError(f"{key} is {value!r}; it must be a whole number from 0 to {most:,}")
    if int(value) > most:
        raise ValueError(f"{key} is {value!r}; it must be a whole number from 0 to {most:,}")
    return int(value)


def _check_path(key: str, value: str | None) -> None:
    """Refuse a path that a file system or fairseq cannot take."""
    if value is None:
        return
    if "${" in value:
        raise ValueError(f"{key} has ${{ in it, which fairseq would replace; choose another name")
    try:
        encoded = value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            f"{key} is {value!r}, which is not UTF-8: choose a name of ordinary characters"
        ) from None
    if not value.isprintable():
        raise ValueError(f"{key} is {value!r}, with a character that cannot be printed")
    if key == "data_dir" and ":" in value:
        raise ValueError(f"{key} is {value!r}; fairseq takes a colon for two directories")
    longest = max(value.split("/"), key=lambda part: len(part.encode()))
    if len(encoded) > LONGEST_PATH or len(longest.encode()) > LONGEST_NAME:
        raise ValueError(
            f"{key} has a name of {len(longest.encode())} bytes; a file system takes "
            f"{LONGEST_NAME}, and {LONGEST_PATH:,} for the whole path"
        )


def _wrapped(names: Iterable[str], width: int = 80, indent: int = 18) -> str:
    """Join names by commas in lines of at most ``width`` letters."""
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) + 2 > width:
            lines.append("")
        lines[-1] += f"{name}, "
    return ("\n" + " " * indent).join(lines).rstrip(", ")
