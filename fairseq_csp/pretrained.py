"""Published weights: ``python -m fairseq_csp.pretrained`` lists, verifies and publishes them.

``pretrained/NAME.pt`` holds weights (float32) and configuration of a run, ``pretrained/table.json``
what is stated of each; ``pretrained/README.md`` is made from the table.
"""

import argparse
import hashlib
import importlib
import io
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from omegaconf import OmegaConf

from fairseq_csp.data.summary import read_summary
from fairseq_csp.datasets import DATASETS, IMAGE_SETS
from fairseq_csp.errors import UserError
from fairseq_csp.files import read_text
from fairseq_csp.output import printable, write_files
from fairseq_csp.recipes.benchmarks import BENCHMARKS
from fairseq_csp.recipes.flags import ROOT
from fairseq_csp.report.flags import attention_name
from fairseq_csp.report.records import Fields, OddValueError, read_record
from fairseq_csp.report.tables import markdown
from fairseq_csp.train_lra import COMMANDS, RESULT, STAGES, tested

logger = logging.getLogger("pretrained")
DIRECTORY = ROOT / "pretrained"
TABLE, README = "table.json", "README.md"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# how far another processor may move the accuracy, in percent: an input or two between two classes
TOLERANCE = 0.05
INTRODUCTION = """\
# Published weights

Made by `python -m fairseq_csp.pretrained add RUN NAME` from runs of this repository; this page is
made from `table.json`. Each file holds weights (float32) and configuration alone. Test accuracies
are those of one seed.

    python -m fairseq_csp.pretrained verify      # SHA-256; accuracy where the data is prepared
    python -m fairseq_csp.predict --path NAME    # lines in, classes and probabilities out

"""


@dataclass(frozen=True)
class Entry:
    """What is stated of published weights.

    Attributes:
        data: name of the directory of the prepared data.
        preparation: the command that prepares it; empty where the data does not tell.
        architecture: name of the architecture.
        attention: name of the attention function.
        accuracy: on the test split, percent.
        examples: of that split.
        parameters: trained parameters.
        train: the command that made the run, of ``train_lra.sh`` or ``fairseq-train``.
        commands: each ``fairseq-train`` of it, one a stage.
        seed: of weights, order and dropout.
        revision: of this repository, that trained it.
        machine: that trained it.
        sha256: of the file.
        bytes: of the file.
    """

    data: str
    preparation: str
    architecture: str
    attention: str
    accuracy: float
    examples: int
    parameters: int
    train: str
    commands: list[str]
    seed: int
    revision: str
    machine: str
    sha256: str
    bytes: int


def read_table() -> dict[str, Entry]:
    """Return what is stated, by name; nothing where there is no table.

    Raises:
        UserError: the table is damaged.
    """
    path = DIRECTORY / TABLE
    if not path.exists():
        return {}
    try:
        table = json.loads(read_text(path))
        return {_checked(name): _entry(Fields(entry, name)) for name, entry in table.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): take it from the repository") from None


def _entry(values: Fields) -> Entry:
    read = {
        str: values.text,
        int: values.whole,
        float: lambda key: values.number(key, 0, 100),
        list[str]: values.texts,
    }
    found = {field.name: read[field.type](field.name) for field in fields(Entry)}
    for name, value in found.items():
        if value is None:
            raise OddValueError(f"{values.text('data')} has no {name}")
    return Entry(**found)


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UserError(
            f"{printable(name)!r} is no name for weights: write small letters, digits, dots and "
            "hyphens, at most 64"
        )
    return name


def checkpoint_of(path_or_name: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return the path of a checkpoint: as it is, or that of published weights.

    Args:
        path_or_name: a path, or the name of published weights.

    Raises:
        UserError: there is no such file, or the published one is not what was published.
    """
    if os.path.exists(path_or_name):
        return path_or_name
    table = read_table()
    if path_or_name not in table:
        raise UserError(
            f"{printable(path_or_name)} is no checkpoint that is there, nor the name of published "
            f"weights: {', '.join(table) or 'there are none'}"
        )
    name = str(path_or_name)
    if wrong := _wrong_file(name, table[name]):
        raise UserError(wrong)
    return DIRECTORY / f"{name}.pt"


def _wrong_file(name: str, entry: Entry) -> str | None:
    """Tell, in a sentence, how a file differs from the published one; None where it does not."""
    path = DIRECTORY / f"{name}.pt"
    try:
        with open(path, "rb") as file:
            # a large one is wrong already, and need not be read
            content = file.read(entry.bytes + 1)
    except OSError as error:
        return f"{name}: {path} cannot be read ({error.strerror}): take it from the repository"
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        return (
            f"{name}: {path} is not the file that was published (its SHA-256 is another): take it "
            "from the repository"
        )
    return None


def listing(table: Mapping[str, Entry]) -> str:
    """Return the table of all published weights, as Markdown."""
    head = ["name", "data", "model", "attention", "test %", "examples", "parameters", "bytes"]
    rows = [
        [
            name,
            entry.data,
            entry.architecture,
            entry.attention,
            f"{entry.accuracy:.2f}",
            f"{entry.examples:,}",
            f"{entry.parameters:,}",
            f"{entry.bytes:,}",
        ]
        for name, entry in sorted(table.items())
    ]
    return markdown(head, rows) if rows else "Nothing is published yet.\n"


def readme(table: Mapping[str, Entry]) -> str:
    """Return the page on all published weights."""
    parts = [INTRODUCTION, listing(table)]
    for name, entry in sorted(table.items()):
        commands = [
            *([entry.preparation] if entry.preparation else []),
            entry.train,
            f"fairseq-validate lra_data/{entry.data} --user-dir fairseq_csp "
            f"--path pretrained/{name}.pt --valid-subset test",
        ]
        parts.append(
            f"\n## {name}\n\n"
            + "".join(f"    {printable(command, 2000)}\n" for command in commands)
            + f"\nSeed {entry.seed}, revision {printable(entry.revision)}, "
            f"{printable(entry.machine)}. SHA-256:\n`{entry.sha256}`\n"
        )
    return "".join(parts)


def verify(name: str, entry: Entry, data: Path) -> tuple[str, bool]:
    """Compare published weights with what is stated of them.

    Args:
        name: theirs.
        entry: what is stated.
        data: directory of the prepared sets, of which theirs need not be there.

    Returns:
        What was found, in a sentence, and whether all that was compared is as stated.
    """
    if wrong := _wrong_file(name, entry):
        return wrong, False
    prepared = data / entry.data
    if not prepared.is_dir():
        how = f": {entry.preparation}" if entry.preparation else ""
        return (
            f"{name}: SHA-256 as stated; its accuracy was not measured, for {prepared} is not "
            f"there{how}",
            True,
        )
    cpu = not torch.cuda.is_available()
    status, found = tested(prepared, DIRECTORY / f"{name}.pt", "32", cpu)
    if status:
        return f"{name}: its accuracy could not be measured: the lines above tell why", False
    accuracy, examples = found["accuracy"], found["examples"]
    measured = f"{accuracy:.3f} % on {examples:,} examples of {prepared}"
    stated = f"{entry.accuracy:.3f} % on {entry.examples:,}"
    # one example more or less in a small set as well
    allowed = max(TOLERANCE, 100 / entry.examples) + 1e-3
    if examples != entry.examples or abs(accuracy - entry.accuracy) > allowed:
        return f"{name}: its test accuracy is {measured}, but {stated} are stated", False
    return f"{name}: SHA-256 as stated; test accuracy {measured}, stated {stated}", True


def add(
    run: Path,
    name: str,
    *,
    data: Path | None = None,
    train: str | None = None,
    revision: str | None = None,
    replace: bool = False,
) -> Entry:
    """Publish a run: its weights and configuration, and what it reached.

    Args:
        run: its directory, with ``result.json`` and the checkpoint that was tested.
        name: the new weights'.
        data: directory of its data; None: the one that it was trained from.
        train: the command that made it, where there is no ``command.jsonl``.
        revision: of this repository then, where there is no ``command.jsonl``.
        replace: publish in the place of weights of this name.

    Returns:
        What is stated of the weights.

    Raises:
        UserError: the run is not finished or tested, its files are damaged, or there are weights
            of this name.
    """
    table = read_table()
    if _checked(name) in table and not replace:
        raise UserError(f"there are weights named {name}: take another name, or give --replace")
    result = _record(run / RESULT)
    try:
        accuracy, examples = result.number("accuracy", 0, 100), result.whole("examples", 1)
        checkpoint = run / Path(result.text("checkpoint") or "").name
        finished = result.whole("exit_status", -1000, 1000) == 0
    except OddValueError as error:
        raise UserError(f"{run / RESULT} is damaged: {error}") from None
    if not finished or accuracy is None or examples is None or checkpoint == run:
        raise UserError(f"{run / RESULT} tells of no test: only a run that was tested is published")
    made = _made_by(run, name, train, revision)
    content, facts = _published_form(checkpoint, data)
    entry = Entry(
        **facts,
        **made,
        accuracy=accuracy,
        examples=examples,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
    )
    table[name] = entry
    ordered = {key: asdict(table[key]) for key in sorted(table)}
    write_files(
        {
            DIRECTORY / f"{name}.pt": content,
            DIRECTORY / TABLE: json.dumps(ordered, indent=2) + "\n",
            DIRECTORY / README: readme(table),
        }
    )
    return entry


def _record(path: Path) -> Fields:
    if not path.exists():
        raise UserError(f"{path} is not there: only a run that was tested is published")
    return Fields(read_record(path), path.name)


def _made_by(run: Path, name: str, train: str | None, revision: str | None) -> dict[str, object]:
    """Return what a run's record tells of its making.

    Raises:
        UserError: there is no record, and what it would tell is not given; or it is damaged.
    """
    path = run / COMMANDS
    if not path.exists():
        if not train or not revision:
            raise UserError(
                f"{path} is not there, as in runs that train_lra.sh did not make: give --train and "
                "--revision"
            )
        return {"train": train, "commands": [train], "revision": revision, "machine": "not told"}
    record = Fields(read_record(path), path.name)
    try:
        arguments = record.texts("arguments")
        commands = [*record.texts("stages"), record.text("command") or ""]
        found = {
            "revision": revision or record.text("revision") or "not told",
            "machine": ", ".join([record.text("machine") or "not told", *record.texts("gpus")]),
        }
        changed = record.fields("changed").values
    except OddValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if changed:
        logger.warning(f"{run} was trained with flags that were changed on the way: {changed}")
    commands = [_portable(command, name) for command in commands]
    benchmark = "vision" if any("--task image-classification" in one for one in commands) else "lra"
    script = [BENCHMARKS[benchmark].script]
    # the script gives the benchmark itself
    own = ("benchmark=", "save_dir=", "data_dir=")
    kept = [part for part in arguments if not part.startswith(own)]
    if kept[-1:] == ["--"]:
        kept.pop()
    return {"train": train or shlex.join(["bash", *script, *kept]), "commands": commands, **found}


def _portable(command: str, name: str) -> str:
    """Return a command without the directories of the machine that it was run on."""
    program, *parts = shlex.split(command) or [""]
    following = dict(zip(parts, parts[1:], strict=False))
    # the repository is where its user directory is
    root = os.path.dirname(following.get("--user-dir", ""))
    saved = following.get("--save-dir", "").partition(f"/{STAGES}/")[0]
    for old, new in ((saved, f"outputs/{name}"), (f"{root}/", "")):
        if os.path.isabs(old):
            parts = [part.replace(old, new) for part in parts]
    return shlex.join([os.path.basename(program), *parts])


def _published_form(checkpoint: Path, data: Path | None) -> tuple[bytes, dict[str, object]]:
    """Return a checkpoint's published form, and what it tells of the run.

    Raises:
        UserError: it is not there or damaged, or needs the directory of its data.
    """
    # it imports this module
    from fairseq_csp import predictor

    if not checkpoint.exists():
        raise UserError(f"{checkpoint} is not there")
    if data is not None and not data.is_dir():
        raise UserError(f"--data is {data}, which is no directory")
    overrides = {"data": str(data)} if data else {}
    state = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint), overrides)
    cfg = OmegaConf.to_container(state["cfg"])
    directory = Path(str(cfg["task"]["data"]))
    # the preparation of the data tells more than an earlier checkpoint
    loaded = predictor.load(checkpoint, directory if directory.is_dir() else None)
    config = {"task": {**cfg["task"], "data": f"lra_data/{directory.name}"}}
    config |= {group: cfg[group] for group in ("model", "criterion")}
    config["common"] = {"seed": cfg["common"]["seed"]}
    history = state["optimizer_history"][-1]
    published = {
        "model": {
            name: weight.float() if weight.is_floating_point() else weight
            for name, weight in loaded.model.state_dict().items()
        },
        "cfg": config,
        "args": None,
        # what fairseq looks for in any checkpoint
        "optimizer_history": [{**history, "lr_scheduler_state": {}}],
        "extra_state": {"train_iterator": {"epoch": 1}},
        "task_state": loaded.task.input_state(),
    }
    if not all(weight.isfinite().all() for weight in published["model"].values()):
        raise UserError(f"{checkpoint} has weights that are not finite")
    content = io.BytesIO()
    torch.save(published, content)
    return content.getvalue(), {
        "data": directory.name,
        "preparation": _preparation(directory),
        "architecture": str(cfg["model"]["_name"]),
        "attention": attention_name(Fields({"model": cfg["model"]}, "cfg")),
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "seed": int(cfg["common"]["seed"]),
    }


def _preparation(directory: Path) -> str:
    """Return the command that prepares a set; empty where its summary does not tell."""
    summary = read_summary(directory) or {}
    name, options, source = (summary.get(key) for key in ("name", "options", "source"))
    data_set = (DATASETS | IMAGE_SETS).get(name) if isinstance(name, str) else None
    if data_set is None or not isinstance(options, dict) or not isinstance(source, dict):
        return ""
    parser = argparse.ArgumentParser()
    importlib.import_module(data_set.module).add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    command = ["python", "-m", "preprocess", str(name)]
    generator = source.get("generator")
    if isinstance(generator, str) and generator.endswith("stand-in"):
        command.append("--demo")
    elif generator and defaults.get("generate") is False:
        # a raw release that lies there would come first
        command.append("--generate")
    for key, value in {**options, "seed": source.get("seed", options.get("seed"))}.items():
        plain = isinstance(value, str | int | float) and not isinstance(value, bool)
        if key in defaults and plain and value != defaults[key]:
            command += [f"--{key.replace('_', '-')}", str(value)]
    return shlex.join([*command, "--out", f"lra_data/{directory.name}"])


def main(arguments: list[str]) -> int:
    """List, verify or publish weights; return the exit status: 1 where one is not as stated.

    Raises:
        UserError: what was asked for cannot be done.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_csp.pretrained",
        description="List, verify and publish trained weights.",
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="list what is published (the default)")
    text = "compare files with their SHA-256, and on data that is prepared the accuracy"
    flag = commands.add_parser("verify", help=text, description=text).add_argument
    flag("names", nargs="*", metavar="NAME", help="which weights (default: all)")
    flag("--data", type=Path, metavar="DIR", help="of the prepared sets (default: lra_data)")
    flag("--files-only", action="store_true", help="measure no accuracy")
    text = "publish a run: weights and configuration, and what it reached"
    flag = commands.add_parser("add", help=text, description=text).add_argument
    flag("run", type=Path, metavar="RUN", help="directory of a run that was tested")
    flag("name", metavar="NAME", help="name of the weights")
    flag("--data", type=Path, metavar="DIR", help="its data, where it is not where it was")
    flag("--train", metavar="COMMAND", help="what made it, where there is no command.jsonl")
    flag("--revision", help="of the repository then, where there is no command.jsonl")
    flag("--replace", action="store_true", help="in the place of weights of this name")
    args = parser.parse_args(arguments)
    if args.command == "verify":
        return _verify(args.names, args.data, args.files_only)
    if args.command == "add":
        facts = {key: vars(args)[key] for key in ("data", "train", "revision", "replace")}
        add(args.run, args.name, **facts)
    sys.stdout.write(listing(read_table()))
    return 0


def _verify(names: list[str], data: Path | None, files_only: bool) -> int:
    table = read_table()
    for name in names:
        if name not in table:
            raise UserError(
                f"{printable(name)} is not published; there are: {', '.join(table) or 'none'}"
            )
    status = 0
    for name in names or sorted(table):
        if files_only:
            wrong = _wrong_file(name, table[name])
            told, right = wrong or f"{name}: SHA-256 as stated", not wrong
        else:
            told, right = verify(name, table[name], data or ROOT / "lra_data")
        (sys.stdout if right else sys.stderr).write(told + "\n")
        sys.stdout.flush()
        status |= not right
    return int(status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
