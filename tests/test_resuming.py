"""A run goes on only as what it was: other functions and data are refused, changes are told."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from fairseq_csp.errors import UserError
from fairseq_csp.fairseq_patches import save_directory
from tests.helpers.generated import SPLITS, write_images, write_text
from tests.helpers.running import TINY, logged, train

TEXT = [*TINY, "--task", "lra-text", "--arch", "mega_lra_imdb"]
IMAGE = [*TINY, "--task", "lra-image", "--arch", "mega_lra_pf32", "--attention", "csp"]
RESUMING = "fairseq_csp.fairseq_patches.resuming"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of 2 updates, in the middle of an epoch of 3, of each kind."""
    root = tmp_path_factory.mktemp("begun")
    for kind, write, words in (("text", write_text, TEXT), ("image", write_images, IMAGE)):
        write(root / kind)
        train(root / kind, root / f"{kind}-run", *words, "--patience", "50", updates=2)
    return root


@pytest.fixture
def run(begun, tmp_path):
    """Go on with a copy of a run."""

    def go(kind, *flags, updates=4, data=None):
        save = tmp_path / f"{kind}-run"
        if not save.exists():
            shutil.copytree(begun / save.name, save)
        words = {"text": TEXT, "image": IMAGE}[kind]
        with logged(RESUMING) as lines:
            state = train(data or begun / kind, save, *words, *flags, updates=updates)
        return state, lines

    go.save = tmp_path
    return go


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--csp-shift", "linear"], "--csp-shift is linear, but .* was trained with exponential"),
        (["--csp-group-size", "4"], "--csp-group-size is 4, but .* was trained with 2"),
        (["--csp-order", "sort_shift"], "--csp-order is sort_shift, but .* with shift_sort"),
        (["--activation-fn", "relu"], "--activation-fn is relu, but .* was trained with silu"),
        (["--sen-rep-type", "cls"], "--sen-rep-type is cls, but .* was trained with mp"),
        (["--pixel-normalization", "0.4", "0.5"], "--pixel-normalization is 0.4 0.5, but .* none"),
        (["--truncation-length", "9"], "--truncation-length is 9, but .* was trained with 1024"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_another_function_is_refused(flags, message, run):
    with pytest.raises(UserError, match=f"{message}.*another --save-dir"):
        run("image", *flags)


def test_a_flag_without_effect_changes_nothing(run):
    state, _ = run("image", "--encoder-attention-heads", "1")
    assert state["optimizer_history"][-1]["num_updates"] == 4


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--lr", "0.02"], "--lr 0.02 (was 0.01)"),
        (["--seed", "7"], "--seed 7 (was 1)"),
        (["--dropout", "0.3"], "--dropout 0.3 (was 0.1)"),
        (["--batch-size", "2"], "--batch-size 2 (was 4)"),
        (["--batch-size", "12"], "--batch-size 12 (was 4)"),
        (["--label-smoothing", "0.1"], "--label-smoothing 0.1 (was 0.0)"),
        (["--weight-decay", "0.5"], "--weight-decay 0.5 (was 0.0)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_changed_on_purpose_is_told_and_recorded(flags, told, run):
    state, lines = run("text", *flags)
    assert state["optimizer_history"][-1]["num_updates"] == 4
    warnings = [line for line in lines if "goes on with other flags" in line]
    assert len(warnings) == 1 and told in warnings[0]
    record = json.loads((run.save / "text-run" / "command.jsonl").read_text().splitlines()[-1])
    flag, value = flags
    assert record["changed"]["--max-update"] == [2, 4]
    assert float(np.squeeze(record["changed"][flag][1])) == float(value)


def test_a_record_keeps_what_it_says(run, begun):
    save = run.save / "text-run"
    shutil.copytree(begun / "text-run", save)
    (save / "command.jsonl").write_text('{"started": "then", "revision": "abc"}\n')
    run("text", "--seed", "7")
    lines = (save / "command.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1])["revision"] == "abc" and "--seed" in json.loads(lines[1])["changed"]


def test_the_same_command_tells_nothing(run):
    _, lines = run("text", updates=3)
    assert [line for line in lines if "--seed" in line or "--lr" in line] == []


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_more_data_are_refused(kind, split, run, tmp_path):
    write = {"text": write_text, "image": write_images}[kind]
    data = write(tmp_path / "other", splits={**SPLITS, split: SPLITS[split] + 3})
    with pytest.raises(UserError, match="split (train|valid) is not the one .* give its data"):
        run(kind, data=data)


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("part", ["input", "label"])
def test_other_data_of_the_same_size_are_refused(kind, part, begun, run, tmp_path):
    data = shutil.copytree(begun / kind, tmp_path / "other")
    if kind == "image":
        content = np.load(data / part / "train.npy")
        np.save(data / part / "train.npy", content[::-1])
    else:
        path = data / {"input": "src-bin", "label": "label-bin"}[part] / "train.bin"
        symbols = np.fromfile(path, np.uint16)
        symbols[0] = 9 - symbols[0] if part == "label" else symbols[0] + 1
        symbols.tofile(path)
    with pytest.raises(UserError, match="split train is not the one"):
        run(kind, data=data)


def test_the_same_data_may_have_moved(begun, run, tmp_path):
    state, _ = run("text", data=shutil.copytree(begun / "text", tmp_path / "moved"))
    assert state["optimizer_history"][-1]["num_updates"] == 4


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--lr", "0.02"], r"--lr 0\.02 \(was 0\.01\)"),
        (["--seed", "7"], r"--seed 7 \(was 1\)"),
        (["--max-update", "1"], r"--max-update 1 \(was 2\)"),
    ],
)
def test_a_finished_run_is_not_reported_under_other_flags(flags, told, run):
    updates = 1 if flags[0] == "--max-update" else 2
    with pytest.raises(UserError, match=f"is finished, and was trained with other flags: {told}"):
        run("text", *flags, updates=updates)


def test_a_finished_run_ends_at_once(run):
    with pytest.raises(SystemExit) as caught:
        run("text", updates=2)
    assert caught.value.code == 0


def test_moments_of_another_shape_are_refused(begun, run):
    save = shutil.copytree(begun / "text-run", run.save / "text-run")
    state = torch.load(save / "checkpoint_last.pt", weights_only=False)
    state["last_optimizer_state"]["state"][0]["exp_avg"] = torch.zeros(3)
    torch.save(state, save / "checkpoint_last.pt")
    with pytest.raises(UserError, match=r"exp_avg has shape \(3,\) for weights of shape"):
        run("text")


def patience(data, save, updates=30):
    return train(data, save, *TEXT, "--patience", "2", "--lr", "1e-12", updates=updates)


def test_a_run_that_has_stopped_early_has_ended(begun, tmp_path):
    """Validations that bring nothing are counted over all starts."""
    state = patience(begun / "text", tmp_path)
    # the first validation is the best one, the third the second without a better score
    updates = state["optimizer_history"][-1]["num_updates"]
    assert updates == 9 and state["task_state"]["early_stopping"]["runs"] == 2
    with logged(RESUMING) as lines, pytest.raises(SystemExit) as caught:
        patience(begun / "text", tmp_path)
    assert caught.value.code == 0
    assert any("stopped early: nothing is left" in line for line in lines)

    # one that is interrupted after the second stops where the other did
    parts = tmp_path / "parts"
    patience(begun / "text", parts, updates=6)
    state = patience(begun / "text", parts)
    assert state["optimizer_history"][-1]["num_updates"] == updates


def test_two_trainings_in_one_directory(begun, tmp_path):
    """The second is refused while the first lives, and leaves its files alone."""
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, os, sys; d = os.open(sys.argv[1], os.O_RDONLY);"
         "fcntl.flock(d, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()", tmp_path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process trains in .*: wait for it"):
            train(begun / "text", tmp_path, *TEXT)
        assert list(tmp_path.iterdir()) == []
    finally:
        holder.communicate("")
    train(begun / "text", tmp_path, *TEXT, updates=1)
    assert os.path.realpath(tmp_path) in save_directory._held


def test_worker_processes_hold_no_lock(tmp_path):
    """A training that was killed may be started again at once, whatever its workers do."""
    save_directory.reserve(str(tmp_path))
    child = os.fork()
    if child == 0:
        os._exit(len(save_directory._held))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [("x" * 300, "File name too long"), ("file", "exists|Not a directory")],
    ids=["long", "a file"],
)
def test_a_save_dir_that_cannot_be_made(name, reason, begun, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"--save-dir .* cannot be made or written .*({reason})"):
        train(begun / "text", tmp_path / name, *TEXT)
    assert (tmp_path / "file").read_text() == ""
