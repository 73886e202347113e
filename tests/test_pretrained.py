"""Published weights, from a run of ``train_lra.sh`` to what is predicted by their name."""

import hashlib
import json
import shlex
import shutil
import sys

import pytest
import torch

from fairseq_csp import predict, pretrained
from fairseq_csp.errors import UserError
from fairseq_csp.models.lra import LRAModel
from fairseq_csp.recipes.arguments import parse_arguments
from tests.helpers.commands import ROOT, SMALL, call, succeed, validate
from tests.helpers.processed import token_lines

NAME = "listops-tiny-csp"


@pytest.fixture(scope="module")
def run(tiny_listops, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    succeed(
        "bash", ROOT / "train_lra.sh", "model_name=mega", "dataset_name=listops", "preset=demo",
        f"data_dir={tiny_listops}", f"save_dir={run}", "seed=3", "--", *SMALL, "--max-update", "8",
        "--save-interval-updates", "8",
    )  # fmt: skip
    return run


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "DIRECTORY", tmp_path / "pretrained")
    return tmp_path / "pretrained"


@pytest.fixture
def published(run, directory, capfd):
    assert pretrained.main(["add", str(run), NAME]) == 0
    capfd.readouterr()
    return directory / f"{NAME}.pt"


def verified(capfd, data):
    """Exit status, and what was told."""
    status = pretrained.main(["verify", "--data", str(data)])
    told = capfd.readouterr()
    return status, told.out + told.err


def test_from_a_run_to_a_prediction(run, published, tiny_listops, capfd):
    result = json.loads((run / "result.json").read_text())
    entry = json.loads((published.parent / "table.json").read_text())[NAME]
    assert entry["accuracy"] == result["accuracy"] and entry["examples"] == 21
    assert entry["data"] == tiny_listops.name and entry["seed"] == 3
    assert (entry["architecture"], entry["attention"]) == ("mega_lra_listop", "csp")
    assert entry["sha256"] == hashlib.sha256(published.read_bytes()).hexdigest()
    assert entry["bytes"] == published.stat().st_size
    record = json.loads((run / "command.jsonl").read_text())
    assert entry["revision"] == record["revision"]
    assert entry["train"].startswith("bash train_lra.sh model_name=mega dataset_name=listops")
    # no directories of this machine but that of the data, which is not in the repository
    (command,) = entry["commands"]
    assert command.startswith("fairseq-train /") and "--user-dir fairseq_csp " in command
    assert f"--save-dir outputs/{NAME} " in command and str(run) not in command
    assert "python -m preprocess listops --train-size 60" in entry["preparation"]

    # weights and configuration alone
    state = torch.load(published, weights_only=True)
    weights = state["model"].values()
    assert {x.dtype for x in weights if x.is_floating_point()} == {torch.float32}
    assert "last_optimizer_state" not in state
    numbers = sum(x.numel() * x.element_size() for x in weights)
    assert numbers < published.stat().st_size < numbers + 80_000
    assert entry["parameters"] == sum(x.numel() for x in LRAModel.from_pretrained(
        published).model.parameters())  # fmt: skip

    assert pretrained.main([]) == 0
    shown = capfd.readouterr().out
    assert f"| {NAME} | {tiny_listops.name} | mega_lra_listop | csp |" in shown
    assert shown in (published.parent / "README.md").read_text()

    assert float(validate(tiny_listops, published, "test")["test_accuracy"]) == result["accuracy"]
    status, told = verified(capfd, tiny_listops.parent)
    assert status == 0
    assert told.startswith(f"{NAME}: SHA-256 as stated; test accuracy {entry['accuracy']:.3f} %")

    lines = token_lines(tiny_listops / "src-bin", "test")
    labels = [words[0] for words in token_lines(tiny_listops / "label-bin", "test")]
    texts = [" ".join(words[:-1]) for words in lines]
    found = LRAModel.from_pretrained(NAME).predict(texts)
    right = sum(one.name == label for one, label in zip(found, labels, strict=True))
    assert round(100 * right / len(labels), 3) == result["accuracy"]
    file = published.with_name("lines")
    file.write_text("\n".join(texts))
    assert predict.main(["--path", NAME, str(file)]) == 0
    shown = [line.split("\t")[0] for line in capfd.readouterr().out.splitlines()]
    assert shown == [one.name for one in found]


def test_a_damaged_file(published, tiny_listops, capfd):
    content = bytearray(published.read_bytes())
    content[len(content) // 2] ^= 1
    published.write_bytes(content)
    status, told = verified(capfd, tiny_listops.parent)
    assert status == 1
    message = f"{NAME}: {published} is not the file that was published (its SHA-256 is another)"
    assert told.startswith(message) and told.count("\n") == 1
    with pytest.raises(UserError, match="is not the file that was published"):
        LRAModel.from_pretrained(NAME)
    published.unlink()
    assert verified(capfd, tiny_listops.parent)[1].startswith(f"{NAME}: {published} cannot be read")


@pytest.mark.parametrize("change", [{"accuracy": 99.0}, {"examples": 22}])
def test_another_accuracy(change, published, tiny_listops, capfd):
    table = published.with_name("table.json")
    entries = json.loads(table.read_text())
    entries[NAME] |= change
    table.write_text(json.dumps(entries))
    status, told = verified(capfd, tiny_listops.parent)
    assert status == 1
    assert f"{NAME}: its test accuracy is " in told
    assert told.rstrip().endswith("are stated") and told.count("\n") == 1


def test_data_that_is_not_there(published, tmp_path, capfd):
    status, told = verified(capfd, tmp_path)
    assert status == 0
    assert "its accuracy was not measured" in told
    assert "is not there: python -m preprocess listops" in told


def test_what_is_not_published(run, trained_run, published, tmp_path, directory):
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def refused(*words):
        with pytest.raises(UserError) as caught:
            pretrained.main([*map(str, words)])
        return str(caught.value)

    assert "there are weights named" in refused("add", run, NAME)
    assert "is no name for weights" in refused("add", run, "../x")
    assert "only a run that was tested is published" in refused("add", trained_run, "x")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / "result.json").write_text('{"exit_status": 1}')
    assert "tells of no test" in refused("add", unfinished, "x")
    shutil.copy(run / "result.json", unfinished)
    (unfinished / "command.jsonl").unlink()
    assert "give --train and --revision" in refused("add", unfinished, "x")
    (unfinished / "checkpoint_best.pt").write_bytes(b"x")
    words = ("--train", "fairseq-train", "--revision", "abc")
    assert "is not a whole checkpoint" in refused("add", unfinished, "x", *words)
    assert "x is not published; there are" in refused("verify", "x")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    shutil.copy(run / "checkpoint_best.pt", unfinished)
    assert pretrained.main(["add", str(unfinished), "x", *words]) == 0
    assert pretrained.read_table()["x"].train == "fairseq-train"
    (directory / "table.json").write_text('{"x": {"data": 1}}')
    assert "table.json is damaged (data is 1, not a text)" in refused("list")


def test_the_repositorys_own():
    table = pretrained.read_table()
    assert (pretrained.DIRECTORY / "README.md").read_text() == pretrained.readme(table)
    files = {path.stem for path in pretrained.DIRECTORY.glob("*.pt")}
    assert files == set(table)
    answer = call(sys.executable, "-m", "fairseq_csp.pretrained", "verify", "--files-only")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout == "".join(f"{name}: SHA-256 as stated\n" for name in sorted(table))
    for entry in table.values():
        # the script takes the command
        _, script, *arguments = shlex.split(entry.train)
        of_script = ["benchmark=vision"] if script == "train_vit.sh" else []
        assert parse_arguments([*of_script, *arguments])


def test_what_was_generated_is_generated_again(tmp_path):
    data = tmp_path / "pathfinder"
    command = ["preprocess", "pathfinder", "--generate", "--limit", "2", "--out", str(data)]
    succeed(sys.executable, "-m", *command)
    expected = "python -m preprocess pathfinder --generate --limit 2 --out lra_data/pathfinder"
    assert pretrained._preparation(data) == expected
