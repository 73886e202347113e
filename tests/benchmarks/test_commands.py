"""The benchmark commands end to end, on tiny sizes."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from benchmarks import busy, launches, loading, op, padding, profile, speed
from benchmarks.models import build_model
from benchmarks.report import Table, measure
from fairseq_csp.errors import UserError
from fairseq_csp.processor import has_bfloat16

QUICK = ["--rounds", "1", "--budget", "0", "--threads", "1", "--device", "cpu"]
CONDITIONS = {"date", "machine", "device", "threads", "torch", "memory_limit_gb", "allocator"}


def run(module, *arguments):
    command = [sys.executable, "-m", module, *QUICK, *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def table_rows(text):
    """The cells of every line of Markdown tables, headings included."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_speed(tmp_path):
    file = tmp_path / "speed.json"
    sizes = ["--lengths", "32", "64", "--tokens", "64"]
    text = run("benchmarks.speed", *sizes, "--only", "^(mega csp|lstm) 2 x 32$", "--json", file)
    numbers = json.loads(file.read_text())
    assert numbers["conditions"].keys() >= CONDITIONS
    assert numbers["conditions"]["device"] == "CPU"
    dtypes = ["float32", "bfloat16"] if has_bfloat16() else ["float32"]
    assert [row["dtype"] for row in numbers["rows"]] == [*dtypes, "float32"]
    *measured, lstm = numbers["rows"]
    single = measured[0]
    for row in measured:
        for answer in (row["ours"], row["reference"], row["naive"]):
            assert answer["tokens_per_second"] == pytest.approx(64 / answer["seconds"])
            assert answer["peak_bytes"] > 0
        speeds = [row[side]["tokens_per_second"] for side in ("ours", "naive")]
        assert row["speed_ratio"] == speeds[0] / speeds[1]
        assert row["kernel_ratio"] == speeds[0] / row["reference"]["tokens_per_second"]
        assert row["memory_ratio"] == row["ours"]["peak_bytes"] / row["naive"]["peak_bytes"]
        beside = row["ours"]["beside"]
        assert row["step_over_products"] == beside["step_seconds"] / beside["products_seconds"]
    assert lstm["ours"]["seconds"] > 0
    assert lstm["reference"] == lstm["naive"] == {}
    assert lstm["speed_ratio"] is lstm["memory_ratio"] is lstm["step_over_products"] is None

    rows = table_rows(text)
    names = ["mega csp 2 x 32"] * len(measured)
    end = 3 + len(measured)
    assert [row[0] for row in rows[2:end]] == [*names, "lstm 2 x 32"]
    assert rows[2][2] == f"{single['ours']['tokens_per_second']:,.0f}"
    assert rows[2][5] == f"{single['speed_ratio']:.2f}"
    assert rows[end - 1][3:6] == ["", "", ""]
    # the second table: matrix products alone
    assert [row[0] for row in rows[end + 2 :]] == names
    assert rows[end + 2][4] == f"{single['step_over_products']:.2f}"


def test_rows_are_printed_as_they_are_measured(tmp_path, capsys):
    """An interrupted command has printed, and written, what it had measured."""
    works = {"first": 1, "second": 2}

    def rows_of(work, measurements):
        if work == 2:
            raise KeyboardInterrupt
        return [{"name": "first", "number": work}]

    args = Namespace(only="", json=tmp_path / "numbers.json", threads=1, memory=1, rounds=1)
    table = Table(["name", "number"], lambda row: [row["name"], str(row["number"])])
    with pytest.raises(KeyboardInterrupt):
        measure("benchmarks.step", works, rows_of, table, args)
    assert table_rows(capsys.readouterr().out)[2:] == [["first", "1"]]
    assert json.loads(args.json.read_text())["rows"] == [{"name": "first", "number": 1}]


def test_busy(tmp_path):
    file = tmp_path / "busy.json"
    sizes = ["--batch", "1", "--length", "32", "--busy", "1"]
    text = run("benchmarks.busy", *sizes, "--only", "=10000", "--json", file)
    (row,) = json.loads(file.read_text())["rows"]
    alone, beside = row["seconds"]
    assert 0 < alone < 60 and 0 < beside < 60
    head, _, shown = table_rows(text)
    assert head == ["seconds a step", "alone", "beside 1"]
    assert shown == ["GOMP_SPINCOUNT=10000", f"{alone:.3f}", f"{beside:.3f}"]


def test_busy_measures_beside_busy_processes(monkeypatch):
    """Each way of waiting has its variables and no other; the processes live as long as that."""
    seen = []

    class Measurements:
        def best(self, specs):
            children = psutil.Process().children()
            names = [name for name in busy.VARIABLES if name in os.environ]
            seen.append((len(children), names))
            return {name: {"mean_seconds": 1.0} for name in specs}

    def measure(module, works, rows_of, table, args):
        for name in works:
            rows_of(name, Measurements())

    before = len(psutil.Process().children())
    monkeypatch.setattr(busy, "measure", measure)
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    busy.main(["--busy", "2"])
    assert [count - before for count, _ in seen] == [0, 2] * len(busy.WAITS)
    assert [names for _, names in seen[::2]] == [list(values) for values in busy.WAITS.values()]
    assert len(psutil.Process().children()) == before
    assert os.environ["GOMP_SPINCOUNT"] == "5"


def test_speed_says_what_does_not_fit(tmp_path):
    file = tmp_path / "speed.json"
    sizes = ["--lengths", "128", "--tokens", "4096", "--memory", "0.05"]
    text = run("benchmarks.speed", *sizes, "--only", "^mega softmax 32 x 128$", "--json", file)
    (row,) = json.loads(file.read_text())["rows"]
    assert row["ours"] == row["naive"] == {"problem": "does not fit in 0.05 GB"}
    assert row["speed_ratio"] is row["memory_ratio"] is None
    problem = "does not fit in 0.05 GB"
    assert table_rows(text)[2][2:] == [problem, "", problem, "", "", "", ""]


def test_op(tmp_path):
    file = tmp_path / "new" / "op.json"
    text = run("benchmarks.op", "--tiny", "--only", "^csp,", "--json", file)
    numbers = json.loads(file.read_text())
    assert numbers["conditions"].keys() >= CONDITIONS
    (row,) = numbers["rows"]
    assert row["shape"] == [2, 8, 64]
    for answer in (row["ours"], row["reference"], row["naive"]):
        assert answer["copies"] == answer["peak_bytes"] / (2 * 8 * 64 * 4)
    assert row["speed_ratio"] == row["naive"]["seconds"] / row["ours"]["seconds"]
    assert row["kernel_ratio"] == row["reference"]["seconds"] / row["ours"]["seconds"]
    assert row["copy_ratio"] == row["ours"]["seconds"] / row["ours"]["copy_seconds"]
    assert table_rows(text)[2][:2] == [row["name"], f"{1000 * row['ours']['seconds']:,.2f}"]


def test_op_says_what_has_no_answer():
    text = run("benchmarks.op", "--tiny", "--only", "^dropout", "--time-limit", "0.1")
    cells = table_rows(text)[2]
    assert cells[1:4] == ["takes more than 0.1 s"] * 3


@pytest.mark.parametrize("module", [speed, op])
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("no such row", "matches no row; there are:\n.*csp"),
        ("(", r"--only '\(' is no regular expression: missing \)"),
    ],
)
def test_pattern_that_matches_nothing(module, pattern, message):
    with pytest.raises(UserError, match=message):
        module.main(["--only", pattern])


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (speed, "--lengths 64 0", "--lengths: 0 is not above zero"),
        (speed, "--tokens 0", "--tokens: 0 is not above zero"),
        (speed, "--plot {place}/file", "--plot: .*file cannot be written"),
        (op, "--rounds 0", "--rounds: 0 is not above zero"),
        (op, "--threads -1", "--threads: -1 is not above zero"),
        (op, "--json {place}", "--json: .* is a directory"),
        (op, "--json {place}/file/op.json", "--json: .*file cannot be written"),
        (profile, "--batch 0", "--batch: 0 is not above zero"),
        (profile, "--length 0", "--length: 0 is not above zero"),
        (profile, "--rounds 0", "--rounds: 0 is not above zero"),
        (padding, "{place} --batch-size 0", "--batch-size: 0 is not above zero"),
        (padding, "{place} --batches 0", "--batches: 0 is not above zero"),
        (loading, "{place} --batch-size 0", "--batch-size: 0 is not above zero"),
    ],
)
def test_mistakes_end_before_anything_is_measured(module, options, message, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        module.main(options.format(place=tmp_path).split())
    assert re.search(f"error: argument {message}", capsys.readouterr().err)


def test_plot_without_matplotlib_ends_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(speed, "measure", lambda *args: pytest.fail("something was measured"))
    with pytest.raises(UserError, match="matplotlib is not installed"):
        speed.main(["--plot", str(tmp_path)])


def test_padding_without_enough_examples(tiny_listops):
    with pytest.raises(UserError, match="examples in train, too few for --batches 1000 of"):
        padding.main([str(tiny_listops), "--batches", "1000", "--threads", "1", "--device", "cpu"])


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.plots import plot

    rows = [
        {
            "arch": "mega_lra_imdb",
            "mechanism": "mega csp",
            "dtype": dtype,
            "batch": 2,
            "length": length,
            "ours": {"seconds": length / 100, "peak_bytes": length << 20},
        }
        for dtype in ("float32", "bfloat16")
        for length in (32, 64)
    ]
    rows.append(rows[0] | {"length": 128, "ours": {"problem": "does not fit in 1 GB"}})
    plot(rows, tmp_path / "plots")
    for name in ("time", "memory"):
        picture = (tmp_path / "plots" / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 10_000


def test_profile():
    command = [sys.executable, "-m", "benchmarks.profile", "--batch", "2", "--length", "64"]
    command += ["--rounds", "1", "--threads", "1"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    kinds, products = answer.stdout.split("\n\n")
    dtypes = ["float32", "bfloat16"] if has_bfloat16() else ["float32"]
    assert ("bfloat16 is left out" in answer.stderr) == (not has_bfloat16())
    head, _, *rows = table_rows(kinds)
    assert head == ["kind of work", *(cell for name in dtypes for cell in (f"{name} ms", "%"))]
    shown, kinds = [row[0] for row in rows], {*profile.FUNCTIONS.values(), profile.REST}
    assert len(shown) == len(set(shown)) and set(shown) <= kinds | {"matrix products"}
    # dropout is inside other kernels where there are some
    assert set(shown) >= kinds - {"dropout"} | {"matrix products"}
    for share in range(2, 2 * len(dtypes) + 1, 2):
        assert sum(int(row[share]) for row in rows) == pytest.approx(100, abs=4)
    head, _, *rows = table_rows(products)
    assert head == ["matrix products", *(f"{name} GFLOP/s" for name in dtypes)]
    assert [row[0] for row in rows] == ["of the step, alone", "2,048 x 2,048 x 2,048"]
    assert all(float(rate) > 0 for row in rows for rate in row[1:])


def test_launches_count_what_is_no_view(monkeypatch):
    monkeypatch.setenv("FAIRSEQ_CSP_KERNELS", "reference")
    x, calls = torch.ones(2, 50), []

    def step():
        # a launch that reads 400 bytes and writes 200, one that reads 8 and 200 and writes 200,
        # and one in place
        half = x.sum(0)
        calls.append(half.view(5, 10).t()[:2].mul(torch.ones(1).expand(2, 5)))
        half.add_(1)

    count = launches.count_step(step)
    assert len(calls) == 2
    assert count.launches == {"sum": 1, "ones": 1, "mul": 1, "add_": 1}
    assert count.bytes == {"sum": 600, "ones": 4, "mul": 40 + 4 + 40, "add_": 200}


def test_launches(capsys):
    launches.main(["--lengths", "64", "40", "--threads", "1", "--operators"])
    step, operators = capsys.readouterr().out.split("\n\n")
    head, _, *rows = table_rows(step)
    assert head == ["dtype", "kernels", "launches", "KiB a valid token"]
    total = int(rows[0][2].replace(",", ""))
    assert sum(int(row[1].replace(",", "")) for row in table_rows(operators)[2:]) == total
    assert "csp_permute" in operators


def test_product_rates_count_two_operations_a_term():
    class Machine:
        def seconds(self, call):
            return 1.0

    rates = profile.product_rates(torch.float32, 2, 64, Machine(), rounds=1)
    assert rates["2,048 x 2,048 x 2,048"] == 2 * 2048**3 / 1e9
    # a forward product and two of the backward pass for each weight of the linear maps
    layers = build_model("mega_lra_imdb", 64, attention="csp").encoder.modules()
    weights = sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear))
    assert rates["of the step, alone"] == 3 * 2 * weights * 2 * 64 / 1e9


def test_padding(tiny_listops):
    command = [sys.executable, "-m", "benchmarks.padding", tiny_listops, "--batch-size", "3"]
    command += ["--batches", "2", "--budget", "0", "--threads", "1", "--device", "cpu"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    measured, _, rest = answer.stdout.partition("mean of the last column: ")
    head, _, *rows = table_rows(measured)
    assert head == padding.COLUMNS
    assert len(rows) == 2
    rates = []
    for row in rows:
        tokens, longest, trimmed, _, equal = (int(cell.replace(",", "")) for cell in row[:-1])
        assert longest < tokens <= 3 * longest
        rates.append(float(row[-1]))
        assert rates[-1] == pytest.approx(trimmed / equal, abs=0.01, rel=0.05)
    assert float(rest.split()[0]) == pytest.approx(sum(rates) / 2, abs=0.011)
    head, _, *shares = table_rows(rest)
    assert head == padding.SHARES
    (_, plain, grained), (_, by_length, _) = shares
    assert float(grained) < float(plain) < float(by_length) <= 1


def test_shares_of_positions_that_are_no_padding():
    sizes = np.array([10, 300, 10, 300, 10, 300])
    plain, by_length = padding.useful_shares(sizes, rows=3)
    # three rows of 10 and three of 300, and those padded to 256 and 512
    assert by_length[1:] == ["1.00", f"{930 / (3 * 256 + 3 * 512):.2f}"]
    assert plain[1:] == [f"{930 / 1800:.2f}", f"{930 / (6 * 512):.2f}"]
