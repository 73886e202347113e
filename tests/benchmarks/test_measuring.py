"""What the numbers of the benchmarks mean."""

import argparse
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import report
from benchmarks.models import build_model, random_sample
from benchmarks.naive import NaiveModel
from benchmarks.operators import OPERATORS
from benchmarks.report import Measurements
from benchmarks.step import matrix_products

# the models here are too small for more, and tests run beside one another
torch.set_num_threads(1)

PEAK = """
import json, sys, torch
from benchmarks.measure import Machine
machine = Machine("cpu", threads=1, memory=1)
size = 1 << 23
left, cache = [], []
def tensor(copies):
    return torch.ones(int(copies * size), dtype=torch.int8)
def three():
    kept = [tensor(1) for _ in range(3)]
def one_after_another():
    first = tensor(1)
    behind_it = tensor(0.001)
    del first
    second = tensor(1.25)
def one_left():
    left.clear()
    left.append(tensor(1))
def two_at_first():
    if not cache:
        cache.append(tensor(2))
    kept = tensor(1)
tensor(9)
print(machine.peak_bytes(globals()[sys.argv[1]], left.clear) / size)
"""


@pytest.mark.parametrize(
    ("call", "copies"),
    [("three", 3), ("one_after_another", 1.25), ("one_left", 1), ("two_at_first", 1)],
)
def test_peak_counts_what_is_in_use(call, copies):
    command = [sys.executable, "-c", PEAK, call]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert float(answer.stdout) == pytest.approx(copies, abs=0.1)


def test_matrix_products_are_those_of_a_step():
    batch, length = 2, 64
    model = build_model("mega_lra_imdb", length, attention="csp")
    sample = random_sample(model, batch, length)
    with FlopCounterMode(display=False) as step:
        NaiveModel(model)(**sample["net_input"]).sum().backward()
    products = matrix_products(model.encoder, batch, length)
    with FlopCounterMode(display=False) as alone:
        products()
    # a step also has those of the moving average's kernel and of the classifier
    assert 1 <= step.get_total_flops() / alone.get_total_flops() < 1.05


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "dropout"])
def test_operators_equal_their_formulas(name):
    operator = OPERATORS[name](8)
    results = []
    for function in (operator.ours, operator.naive):
        torch.manual_seed(0)
        values = torch.randn(2, 8, 32, requires_grad=True)
        operator.parameters.zero_grad()
        out = function(values)
        out.square().sum().backward()
        results.append([out, values.grad, *(p.grad for p in operator.parameters.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.fixture
def measurements(tmp_path, monkeypatch):
    """Measurements by a program that does what its specification says."""
    (tmp_path / "program.py").write_text(
        "import json, os, sys, time\n"
        "spec = json.loads(sys.argv[1])\n"
        "log = open('log', 'a'); log.write(spec['name'] + '\\n'); log.close()\n"
        "turn = open('log').read().splitlines().count(spec['name']) - 1\n"
        "exec(spec['does'])\n"
    )
    monkeypatch.setattr(report, "ROOT", tmp_path)
    args = {"rounds": 3, "budget": 1, "threads": 1, "memory": 2, "device": "cpu", "time_limit": 9}
    return Measurements("program", argparse.Namespace(**args))


def spec(name, does):
    return {name: {"name": name, "does": does}}


def saying(*answers):
    listed = [answer | {"device": "CPU"} for answer in answers]
    return f"print(json.dumps({listed}[turn]))"


def test_best_of_alternate_rounds(measurements, tmp_path):
    ours = saying(
        {"seconds": 3, "peak_bytes": 8},
        {"seconds": 1, "peak_bytes": 9},
        {"seconds": 2, "peak_bytes": 7},
    )
    naive = saying(*3 * [{"seconds": 5, "peak_bytes": 5}])
    answers = measurements.best(spec("ours", ours) | spec("naive", naive))
    assert answers["ours"] == {"seconds": 1, "peak_bytes": 7}
    assert answers["naive"] == {"seconds": 5, "peak_bytes": 5}
    assert (tmp_path / "log").read_text().split() == ["ours", "naive"] * 3


def test_a_problem_ends_the_rounds_of_its_measurement(measurements, tmp_path):
    late = saying({"seconds": 1, "peak_bytes": 2}, {"problem": "does not fit"})
    answers = measurements.best(spec("late", late) | spec("never", "time.sleep(0); sys.exit('no')"))
    assert answers["late"] == {"seconds": 1, "peak_bytes": 2}
    assert answers["never"] == {"problem": "failed: no"}
    assert (tmp_path / "log").read_text().split() == ["late", "never", "late"]


def test_problems_are_said(measurements):
    measurements.args.time_limit = 2
    killed = spec("killed", "os.kill(os.getpid(), 9)")
    slow = spec("slow", "time.sleep(20)")
    assert measurements.best(killed | slow) == {
        "killed": {"problem": "ended by SIGKILL (memory limit 2 GB)"},
        "slow": {"problem": "takes more than 2 s"},
    }


def test_huge_pages_for_all(measurements):
    does = "print(json.dumps({'seconds': 1, 'peak_bytes': 1, 'device': 'CPU', **os.environ}))"
    answer = measurements.best(spec("any", does))["any"]
    assert answer["THP_MEM_ALLOC_ENABLE"] == "1"
    assert answer["OMP_NUM_THREADS"] == "1"
