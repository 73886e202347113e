"""All runs of a product: which they are, that they are resumed, limited, shown and ended."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fairseq_csp import grid, train_lra
from fairseq_csp.errors import UserError
from tests.helpers.commands import ENVIRONMENT, ROOT, SMALL, hear_signals

ARGUMENTS = ["models=mega,lstm", "attention=csp,default", "datasets=listops,aan", "seeds=2"]
LIMIT = 60


@pytest.fixture
def out(tmp_path):
    return tmp_path / "grid"


def asked(out, *arguments):
    return grid.parse_grid([*ARGUMENTS, f"out={out}", *arguments])


def finish(run, accuracy=30.0):
    run.mkdir(parents=True, exist_ok=True)
    (run / "command.jsonl").write_text('{"seed": 0}\n')
    (run / "result.json").write_text(json.dumps({"exit_status": 0, "accuracy": accuracy}))


def test_the_runs_are_those_of_the_product(out, caplog):
    caplog.set_level("INFO")
    runs = grid.runs_of(asked(out, "preset=laptop", "--", "--lr", "0.1"))
    cells = ["mega-csp", "mega-default", "lstm-default"]
    assert list(runs) == [out / "listops" / cell / f"seed-{n}" for cell in cells for n in (0, 1)]
    assert "left out: lstm does not take csp" in caplog.messages
    assert any("preset=laptop has no recipe for aan" in line for line in caplog.messages)
    choice = train_lra.choice_of(runs[out / "listops" / "mega-csp" / "seed-1"])
    assert (choice.model_name, choice.attention, choice.seed) == ("mega", "csp", 1)
    assert (choice.preset, choice.extra) == ("laptop", ("--lr", "0.1"))


def test_all_data_sets_are_those_of_the_long_range_arena(out):
    names = grid.parse_grid(["models=mega", "datasets=all", f"out={out}"]).datasets
    assert names == ("listops", "imdb-4000", "aan", "cifar10", "pathfinder", "path-x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models=mega"], "datasets is missing"),
        (["models"], "'models' is not KEY=VALUE with a key of models, attention"),
        (["model=mega"], "'model=mega' is not KEY=VALUE"),
        ([*ARGUMENTS, "seeds=1"], "seeds is given twice"),
        (["models=mega", "datasets=aan", "seeds=-1"], "seeds is '-1'; it must be a whole number"),
        (["models=mega", "datasets=aan", "seeds=0"], "seeds is 0; it must be how many, or a list"),
        (["models=mega", "datasets=aan", "jobs=0"], "jobs is '0'; it must be a whole number of at"),
        (["models=mega", "datasets=aan", "launcher=pbs"], "it must be one of local, slurm"),
        (["models=mega", "datasets=aan", "preset=x"], "it must be one of paper, mega, demo"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        grid.parse_grid(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models=bert", "datasets=aan"], "bert"),
        (["models=mega", "datasets=imdb"], "datasets has 'imdb'; it takes listops"),
        (["models=mega", "datasets=aan", "attention=x"], "must be one of"),
    ],
)
def test_unknown_names(arguments, message, out):
    with pytest.raises(UserError, match=message):
        grid.runs_of(grid.parse_grid([*arguments, f"out={out}"]))


def test_states(tmp_path):
    run = tmp_path / "run"
    assert grid.state_of(run) == "waiting"
    run.mkdir()
    with train_lra._reserved(run):
        assert grid.state_of(run) == "running"
    assert grid.state_of(run) == "broken off"
    train_lra._write_result(run, {"exit_status": 3})
    assert grid.state_of(run) == "failed (exit status 3)"
    finish(run)
    assert grid.state_of(run) == "finished"
    (run / "result.json").write_text("half")
    assert grid.state_of(run) == "broken off"


class Job:
    """A job that ends when it is asked for the third time."""

    alive: list = []
    most = 0

    def __init__(self, run):
        self.run, self.asked = run, 0
        Job.alive.append(self)
        Job.most = max(Job.most, len(Job.alive))

    def done(self):
        self.asked += 1
        if self.asked == 3:
            finish(self.run)
            Job.alive.remove(self)
        return self.asked >= 3

    def cancel(self):
        self.asked = 2


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.setattr(grid, "PERIOD", 0)
    monkeypatch.setattr(Job, "alive", [])
    monkeypatch.setattr(Job, "most", 0)


def test_so_many_run_at_a_time_and_no_more(out, jobs):
    wanted = asked(out, "jobs=3")
    runs = grid.runs_of(wanted)
    slots = []

    def submit(run, arguments, slot):
        slots.append(slot)
        return Job(run)

    grid.launch(wanted, runs, submit)
    assert len(slots) == len(runs) == 12
    assert (Job.most, set(slots), Job.alive) == (3, {0, 1, 2}, [])


def test_an_interruption_ends_the_jobs(out, jobs):
    wanted = asked(out, "jobs=2")

    def submit(run, arguments, slot):
        if len(Job.alive) == 1:
            raise KeyboardInterrupt
        return Job(run)

    with pytest.raises(KeyboardInterrupt):
        grid.launch(wanted, grid.runs_of(wanted), submit)
    assert not Job.alive


def call(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "fairseq_csp.grid", *map(str, arguments)],
        cwd=ROOT,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
    )


def test_the_state_table_and_what_is_finished(out, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grid, "prepare_data", lambda choice: 0)
    monkeypatch.setattr(grid, "_executor", lambda grid: None)
    monkeypatch.setattr(grid, "PERIOD", 0)
    monkeypatch.setattr(grid, "markdown_report", lambda runs: "the table\n")
    monkeypatch.setattr(grid, "find_runs", lambda roots: [])
    started = []

    def submit(wanted, executor, arguments, slot):
        run = Path(arguments[5].removeprefix("save_dir="))
        started.append(run.relative_to(out))
        return Job(run)

    monkeypatch.setattr(grid, "_submit", submit)
    arguments = ["models=mega", "datasets=listops", "seeds=2", f"out={out}"]
    finish(out / "listops" / "mega-csp" / "seed-0", accuracy=31.5)
    assert grid.main(arguments) == 0
    assert capsys.readouterr().out == "the table\n"
    assert started == [Path("listops/mega-csp/seed-1")]
    (out / "listops" / "mega-csp" / "seed-1" / "result.json").unlink()
    assert grid.main(["status", f"out={out}"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[2:] == [
        "| listops/mega-csp/seed-0 | finished | 31.50 |",
        "| listops/mega-csp/seed-1 | broken off |  |",
    ]
    with pytest.raises(UserError, match="there is no grid in"):
        grid.main(["status", f"out={tmp_path}"])


def small_grid(out, data, *arguments):
    return [
        "models=mega", "datasets=listops", "preset=demo", f"out={out}", f"data={data}",
        "gpus=0", *arguments,
        "--", *SMALL, "--max-update", "2",
    ]  # fmt: skip


STAND_INS = {
    # runs the script at once, in the background, as number 1, 2, ...; reads it first, as SLURM
    # does, for submitit then moves it
    "sbatch": """
script=$(cat "$1")
n=$(($(ls "$SLURM_STAND_IN" | grep -c '^job') + 1)); touch "$SLURM_STAND_IN/job$n"
export SLURM_JOB_ID=$n SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1 SLURM_NODEID=0 SLURM_PROCID=0
SLURM_LOCALID=0 SLURM_JOB_NODELIST=here setsid bash -c "$script" >/dev/null 2>&1 &
echo $! > "$SLURM_STAND_IN/job$n"
echo "Submitted batch job $n"
""",
    "srun": """
while [ "${1#-}" != "$1" ]; do case $1 in --output | --error) shift 2 ;; *) shift ;; esac; done
exec "$@"
""",
    "sacct": """
echo "JobID|State|NodeList"
for file in "$SLURM_STAND_IN"/job*; do
    if kill -0 "$(cat "$file")" 2>/dev/null; then state=RUNNING; else state=COMPLETED; fi
    echo "${file##*job}|$state|here"
done
""",
    "squeue": """
for file in "$SLURM_STAND_IN"/job*; do
    kill -0 "$(cat "$file")" 2>/dev/null && echo "${file##*job} RUNNING"
done
""",
    # a job hears of its end, and is killed some time later
    "scancel": """
job=$(cat "$SLURM_STAND_IN/job$1")
kill -TERM -- "-$job"
(sleep 3; kill -KILL -- "-$job") >/dev/null 2>&1 &
""",
    "scontrol": "echo here\n",
}


@pytest.fixture
def slurm(tmp_path):
    """Commands in the place of SLURM's, first on the path."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    (tmp_path / "jobs").mkdir()
    for name, text in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}")
        (folder / name).chmod(stat.S_IRWXU)
    path = f"{folder}{os.pathsep}{ENVIRONMENT['PATH']}"
    return {"PATH": path, "SLURM_STAND_IN": str(tmp_path / "jobs")}


@pytest.fixture
def quick_training(tmp_path):
    """On PYTHONPATH: train_lra that leaves a finished run, or waits where it is told to."""
    (tmp_path / "sitecustomize.py").write_text(
        "import json, os, sys, time\n"
        "if sys.orig_argv[1:3] == ['-m', 'fairseq_csp.train_lra']:\n"
        "    given = dict(one.split('=', 1) for one in sys.orig_argv if '=' in one)\n"
        "    run = given['save_dir']\n"
        "    os.makedirs(run, exist_ok=True)\n"
        "    open(run + '/command.jsonl', 'w').write('{\"seed\": %s}\\n' % given['seed'])\n"
        "    if 'WAIT' in os.environ:\n"
        "        time.sleep(600)\n"
        "    result = {'exit_status': 0, 'accuracy': 40.0 + int(given['seed']), 'examples': 21}\n"
        "    json.dump(result, open(run + '/result.json', 'w'))\n"
        "    os._exit(0)\n"
    )
    return {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


@pytest.fixture
def demo_data(tiny_listops, tmp_path):
    """A directory of prepared sets, with the demo's."""
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "listops-demo").symlink_to(tiny_listops)
    return tmp_path / "sets"


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_jobs_are_started_and_waited_for(launcher, out, slurm, quick_training, demo_data):
    arguments = small_grid(out, demo_data, "seeds=0,3", f"launcher={launcher}", "jobs=2")
    answer = call(*arguments, **slurm, **quick_training)
    assert answer.returncode == 0, answer.stderr
    assert "2 runs, 0 of them finished" in answer.stderr
    assert "listops/mega-csp/seed-3: finished" in answer.stderr
    assert len(list(Path(slurm["SLURM_STAND_IN"]).iterdir())) == (2 if launcher == "slurm" else 0)
    again = call(*arguments, **slurm, **quick_training)
    assert "2 runs, 2 of them finished" in again.stderr
    shown = call("status", f"out={out}").stdout
    assert "| listops/mega-csp/seed-3 | finished | 43.00 |" in shown


@pytest.mark.parametrize("launcher", ["local", "slurm"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_nothing_is_left_when_it_is_ended(number, launcher, out, slurm, quick_training, demo_data):
    arguments = small_grid(out, demo_data, "seeds=2", f"launcher={launcher}", "jobs=2")
    process = subprocess.Popen(
        [sys.executable, "-m", "fairseq_csp.grid", *arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, **slurm, **quick_training, "WAIT": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=hear_signals,
    )

    def running():
        found = []
        for one in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(one.info["cmdline"] or [])
            if str(out) in line and one.info["status"] != "zombie":
                found.append(line)
        return found

    end = time.monotonic() + 3 * LIMIT
    while len(list(out.glob("listops/*/*/command.jsonl"))) < 2:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(2 * LIMIT) == 130
    end = time.monotonic() + LIMIT
    while running():
        assert time.monotonic() < end, running()
        time.sleep(0.2)


@pytest.mark.slow
def test_a_grid_through_the_real_commands(out, demo_data):
    answer = call(*small_grid(out, demo_data, "seeds=2", "jobs=2", "attention=csp,default"))
    assert answer.returncode == 0, answer.stderr
    rows = [line for line in answer.stdout.splitlines() if "| mega_lra_listop |" in line]
    cells = [row for row in rows if "| 0, 1 |" in row]
    assert len(cells) == 2 and len(rows) == 2 + 4, "a row a cell, and one a run"


def test_slurm_that_is_not_there(out, demo_data, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="launcher=slurm needs SLURM's commands"):
        grid._executor(asked(out, "launcher=slurm"))
