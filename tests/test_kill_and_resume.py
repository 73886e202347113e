"""A run that is killed goes on to what it would have been: the same losses, the same weights."""

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from tests.helpers.commands import (
    ENVIRONMENT,
    ROOT,
    SMALL,
    TOOLS,
    generate_listops,
    logged,
    start,
    training_command,
)

FLAGS = [
    "--update-freq", "2", "--save-interval-updates", "3", "--keep-interval-updates", "1",
    "--no-epoch-checkpoints", "--log-format", "json", "--log-interval", "1",
]  # fmt: skip
KILLED = -signal.SIGKILL
# of the moments of one file, as tests/killing counts them
HALF, NAMED = 2, 4


@pytest.fixture(scope="module")
def listops(tmp_path_factory):
    # 8 batches, 4 updates an epoch
    return generate_listops(tmp_path_factory.mktemp("data") / "listops")


class Run:
    """A training that is started again and again, in one directory.

    Attributes:
        losses: by update and split, the last ones that were logged.
        log: of the last start.
    """

    def __init__(self, save_dir, command):
        self.save_dir = save_dir
        self.command = command
        self.losses = {}

    def start(self, **environment):
        killing = [str(ROOT / "tests" / "killing"), *filter(None, [ENVIRONMENT.get("PYTHONPATH")])]
        return start(*self.command, PYTHONPATH=os.pathsep.join(killing), **environment)

    def end(self, process, before=""):
        """Wait for the end and return the exit status."""
        self.log = before + process.communicate(timeout=600)[0]
        for split, number in (("train_inner", "num_updates"), ("valid", "valid_num_updates")):
            loss = number.replace("num_updates", "loss")
            for entry in logged(self.log, split):
                self.losses[split, int(entry[number])] = entry[loss]
        return process.returncode

    def go(self, **environment):
        return self.end(self.start(**environment))

    def checkpoint(self, name):
        return torch.load(self.save_dir / f"checkpoint_{name}.pt", weights_only=True)

    def updates(self):
        return self.checkpoint("last")["optimizer_history"][-1]["num_updates"]

    def names(self):
        return {path.name for path in self.save_dir.glob("checkpoint*")}

    def assert_whole(self):
        """What has the name of a checkpoint is a whole one; at most one file was being written."""
        for path in self.save_dir.glob("checkpoint*.pt"):
            assert torch.load(path, weights_only=True)["model"]
        assert len(list(self.save_dir.glob("*.tmp"))) <= 1


def assert_equal(one, other):
    """Two values of a checkpoint are equal bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        for first, second in zip(one, other, strict=True):
            assert_equal(first, second)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def assert_same_runs(one, other):
    assert one.losses == other.losses
    assert one.names() == other.names()
    for name in ("best", "last"):
        first, second = one.checkpoint(name), other.checkpoint(name)
        for part in ("model", "last_optimizer_state"):
            assert_equal(first[part], second[part])
        for part in ("train_iterator", "val_loss", "best"):
            assert_equal(first["extra_state"][part], second["extra_state"][part])
        # each start adds one
        assert first["optimizer_history"][-1] == second["optimizer_history"][-1]


def fairseq_run(listops, save_dir, *flags):
    return Run(save_dir, training_command(listops, save_dir, "--max-update", "16", *FLAGS, *flags))


@pytest.fixture(scope="module")
def whole(listops, tmp_path_factory):
    run = fairseq_run(listops, tmp_path_factory.mktemp("whole"), "--num-workers", "0")
    assert run.go() == 0, run.log
    assert sorted(run.losses) == [
        *(("train_inner", number) for number in range(1, 17)),
        *(("valid", number) for number in (3, 4, 6, 8, 9, 12, 15, 16)),
    ]
    return run


def test_loader_workers_change_nothing(whole, listops, tmp_path):
    run = fairseq_run(listops, tmp_path, "--num-workers", "2")
    assert run.go() == 0, run.log
    assert_same_runs(whole, run)


def test_killed_run_equals_uninterrupted(whole, listops, tmp_path):
    run = fairseq_run(listops, tmp_path)
    # update 3: checkpoint_1_3.pt has its name, checkpoint_best.pt is half written
    assert run.go(KILL_AT=f"{NAMED + HALF}") == KILLED, run.log
    assert run.names() == {"checkpoint_1_3.pt", "checkpoint_best.pt.tmp"}
    # half of the first file of update 4, the end of the epoch
    assert run.go(KILL_AT=f"{3 * NAMED + HALF}") == KILLED, run.log
    run.assert_whole()
    assert run.updates() == 3
    (tmp_path / "checkpoint_9_99.pt.tmp").write_bytes(b"of another kill")
    # an update behind a save, then a validation, of a run that goes on
    assert run.go(KILL_AFTER=r'train_inner \| .*"num_updates": "7"') == KILLED, run.log
    assert run.updates() == 6
    assert run.go(KILL_AFTER=r"begin validation on") == KILLED, run.log
    assert run.updates() == 6
    assert "Loaded checkpoint" in run.log
    assert run.go() == 0, run.log
    assert_same_runs(whole, run)

    # it has had all its updates
    assert run.go() == 0, run.log
    assert "nothing is left" in run.log
    assert_same_runs(whole, run)


def test_full_disk_leaves_the_checkpoint_before(whole, listops, tmp_path):
    """A limit on the size of a file stands for a disk that is full."""
    run = fairseq_run(listops, tmp_path)
    assert run.go(KILL_AFTER=r"Saved checkpoint .*@ 6 updates") == KILLED, run.log
    before = {path.name: path.read_bytes() for path in tmp_path.glob("checkpoint*")}
    limit = len(before["checkpoint_last.pt"]) // 2
    limited = (
        f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    full = Run(tmp_path, [sys.executable, "-c", limited, *run.command])
    assert full.go() == 1
    *_, last = full.log.splitlines()
    assert re.search(r"could not be written .*the checkpoints before it are whole.*make room", last)
    assert "Traceback" not in full.log
    assert {path.name: path.read_bytes() for path in tmp_path.glob("checkpoint*")} == before
    assert run.go() == 0, run.log
    run.losses |= {key: full.losses[key] for key in full.losses if key not in run.losses}
    assert_same_runs(whole, run)


@pytest.mark.parametrize("what", ["log", "tensorboard"])
def test_full_disk_under_a_log_is_one_sentence(what, listops, tmp_path):
    """The checkpoints lie elsewhere; a limit on the size of a file stands for the disk."""
    flags = {
        "log": ["--log-file", tmp_path / "train.log"],
        "tensorboard": ["--tensorboard-logdir", tmp_path / "tensorboard"],
    }[what]
    limited = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500));"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    program = TOOLS / "fairseq-train"
    # the limit would hold for the memory that loader workers share as well
    flags += ["--num-workers", "0"]
    command = training_command(listops, tmp_path / "save", "--max-update", "30", *FLAGS, *flags)
    full = Run(
        tmp_path / "save", [sys.executable, "-c", limited, program, *command[1:], "--no-save"]
    )
    assert full.go() == 1
    assert "Traceback" not in full.log and "Exception" not in full.log, full.log
    assert re.search(
        r"could not be written \(File too large\): make room", full.log.splitlines()[-1]
    )


def train_lra_run(listops, save_dir):
    words = ["model_name=mega", "dataset_name=listops", "preset=demo", "seed=5", "gpus=0"]
    flags = [*SMALL, *FLAGS, "--batch-size", "8", "--max-update", "90"]
    script = ["bash", ROOT / "train_lra.sh", *words, f"data_dir={listops}", f"save_dir={save_dir}"]
    return Run(save_dir, [*script, "--", *flags])


def kill_in(run, phase, draw):
    """Kill train_lra.sh's python or fairseq-train a random time after a phase began."""
    process = run.start()
    before = []
    for line in process.stdout:
        before.append(line)
        if re.search(phase, line):
            break
    try:
        process.wait(draw.uniform(0, 0.3))
    except subprocess.TimeoutExpired:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
        draw.choice(family).kill()
    # the end of its output is the end of all that belong to it
    return run.end(process, "".join(before))


@pytest.mark.slow
def test_many_kills_through_train_lra(listops, tmp_path):
    """24 kills: half of them while a checkpoint is written, the others anywhere."""
    whole = train_lra_run(listops, tmp_path / "whole")
    assert whole.go() == 0, whole.log
    draw = random.Random(0)
    left = {"writing": 12, "update": 6, "validation": 6}
    runs = 0
    while any(left.values()):
        run = train_lra_run(listops, tmp_path / f"killed {runs}")
        runs += 1
        status = 1
        while status:
            kind = max(left, key=left.get)
            if not left[kind]:
                status = run.go()
            elif kind == "writing":
                status = run.go(KILL_AT=f"{draw.randint(1, 10 * NAMED)}")
            else:
                phase = r"train_inner \| " if kind == "update" else "begin validation on"
                status = kill_in(run, phase, draw)
            # of fairseq-train, or of the python of train_lra.sh, which tells of the other
            assert status in (0, KILLED, 128 + signal.SIGKILL), run.log
            left[kind] -= status != 0
            run.assert_whole()
        assert_same_runs(whole, run)
        results = [Path(side.save_dir, "result.json").read_text() for side in (whole, run)]
        assert results[0] == results[1]
