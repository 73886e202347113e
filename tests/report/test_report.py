"""The report on training runs, through its command."""

import csv
import json
import re
import shutil
import statistics
import sys
from xml.etree import ElementTree

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fairseq_csp.errors import UserError
from fairseq_csp.report.__main__ import main
from fairseq_csp.report.results import wilson
from tests.helpers.commands import call, succeed, validate


def table(text, title):
    """The rows of a Markdown table, each by the names of its columns."""
    section = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line.strip("|")) for line in lines]
    head, _, *rows = [[cell.strip() for cell in line] for line in cells]
    return [dict(zip(head, row, strict=True)) for row in rows]


def report(capsys, *roots):
    assert main([str(root) for root in roots]) == 0
    return capsys.readouterr().out


def another(runs, name, change=None, accuracy=None):
    """A copy of the trained run with another configuration, as if it had been trained so."""
    run = shutil.copytree(runs / "seed-1", runs / name)
    for file in run.glob("checkpoint_*.pt"):
        state = torch.load(file, weights_only=True)
        for (group, key), value in (change or {}).items():
            state["cfg"][group][key] = value
        torch.save(state, file)
    if accuracy is not None:
        (run / "result.json").write_text(json.dumps({"exit_status": 0, "accuracy": accuracy}))
    return run


def test_a_run_is_reported_and_tested(tiny_listops, runs, updates, capsys):
    (row,) = table(report(capsys, runs), "Runs")
    assert row["status"] == "not tested"
    log = (runs / "seed-1" / "train.log").read_text()

    assert main([str(runs), "--test", "--out", str(runs / "made" / "report.md")]) == 0
    text = (runs / "made" / "report.md").read_text()
    (row,) = table(text, "Results")
    best = validate(tiny_listops, runs / "seed-1" / "checkpoint_best.pt", "test")
    accuracy, examples = float(best["test_accuracy"]), round(float(best["test_bsz"]))
    low, high = wilson(accuracy / 100, examples)
    assert row["test %"] == f"{accuracy:.2f} ({100 * low:.2f} to {100 * high:.2f})"
    (model,) = table(text, "Summary")
    expected = {"model": "mega", "attention": "csp", "setting": "", "listops-tiny": row["test %"]}
    assert model == expected
    # fairseq repeats lines in its log file
    lines = dict.fromkeys(re.findall(r"'valid' subset .*", log))
    accuracies = [float(re.search(r"accuracy ([\d.]+)", line)[1]) for line in lines]
    assert len(accuracies) > 1
    assert row["best valid %"] == f"{max(accuracies):.2f}"
    assert row["parameters"] == re.search(r"num. trained: ([\d,]+)", log)[1]
    assert (row["updates"], row["seeds"]) == (str(updates), "1")
    assert (row["data set"], row["architecture"]) == ("listops-tiny", "mega_lra_listop")
    assert table(text, "Runs")[0]["status"] == "finished"

    picture = (runs / "made" / "report" / "listops-tiny.svg").read_text()
    # an update a point, and every validation, told by its number
    lines = ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}polyline")
    assert updates in [len(line.get("points").split()) for line in lines]
    assert f"{accuracies[-1]:.2f} % after {updates} updates" in picture
    assert "](report/listops-tiny.svg)" in text
    with open(runs / "made" / "report" / "listops-tiny.csv", newline="") as lines:
        points = list(csv.DictReader(lines))
    assert [float(p["accuracy"]) for p in points if p["split"] == "valid"] == accuracies
    assert [int(p["update"]) for p in points if p["split"] == "train"] == list(
        range(1, updates + 1)
    )


def test_a_run_that_cannot_be_tested_is_listed_as_not_tested(runs, capsys, caplog):
    best = another(runs, "gone", {("task", "data"): str(runs / "none")}) / "checkpoint_best.pt"
    unknown = another(runs, "unknown")
    for file in unknown.glob("checkpoint_*.pt"):
        torch.save({"model": {}}, file)
    (unknown / "train.log").write_text("done training in 1 seconds\n")
    assert main([str(runs), "--test"]) == 1
    said = capsys.readouterr()
    states = {row["run"].rpartition("/")[2]: row["status"] for row in table(said.out, "Runs")}
    assert states == {"gone": "not tested", "seed-1": "finished", "unknown": "not tested"}
    assert f"is {runs / 'none'} the prepared data" in said.err
    assert f"{best} could not be tested: the lines above" in caplog.text
    assert "nothing tells what data it was trained on" in caplog.text


def test_tokens_per_second_leave_validation_out(runs, updates, capsys):
    state = torch.load(runs / "seed-1" / "checkpoint_last.pt", weights_only=True)
    meters = {key: values for _, key, _, values in dict(state["extra_state"]["metrics"])["default"]}
    # every training example once in 8 updates: the last update sees 8 of them again
    assert meters["wpb"]["count"] == updates
    expected = meters["wpb"]["sum"] / meters["train_wall"]["sum"]
    (runs / "seed-1" / "result.json").write_text('{"exit_status": -2}')
    another(runs, "tested", accuracy=30.0)
    text = report(capsys, runs)
    (row,) = table(text, "Results")
    stopped, tested = table(text, "Runs")
    assert (stopped["status"], tested["status"]) == ("crashed (SIGINT)", "finished")
    assert {each["tokens/s"] for each in (row, stopped, tested)} == {f"{expected:,.0f}"}
    assert meters["train_wall"]["sum"] < state["extra_state"]["previous_training_time"]


def test_seeds_are_one_row_and_settings_are_not(runs, capsys):
    accuracies = [30.0, 40.0, 41.0]
    (runs / "seed-1" / "result.json").write_text('{"exit_status": 0, "accuracy": 30.0}')
    for seed in (2, 3):
        another(runs, f"seed-{seed}", {("common", "seed"): seed}, accuracies[seed - 1])
    another(runs, "other", {("model", "csp_shift"): "linear"}, 20.0)
    rows = {row["setting"]: row for row in table(report(capsys, runs), "Results")}
    assert set(rows) == {"--csp-shift exponential", "--csp-shift linear"}
    row = rows["--csp-shift exponential"]
    assert row["seeds"] == "1, 2, 3"
    assert row["test %"] == f"**37.00 ± {statistics.stdev(accuracies):.2f}**"
    assert rows["--csp-shift linear"]["test %"] == "20.00"


OWN = """\
from dataclasses import dataclass

import fairseq_csp
from fairseq_csp.modules.attention import ValueAttention, option, register_attention


@dataclass
class MineOptions:
    width: int = option(3, "how wide")


@register_attention("mine", options=MineOptions)
class Mine(ValueAttention):
    pass
"""


def test_functions_of_a_user_directory_are_known_by_it(runs, tmp_path):
    (tmp_path / "somebodys").mkdir()
    (tmp_path / "somebodys" / "__init__.py").write_text("import somebodys.mine\n")
    (tmp_path / "somebodys" / "mine.py").write_text(OWN)
    another(runs, "mine-1", {("model", "attention"): "mine"})
    for seed, width in ((2, 3), (3, 4)):
        mine = {("model", "attention"): "mine", ("model", "mine_width"): width}
        another(runs, f"mine-{seed}", {**mine, ("common", "seed"): seed})
    command = [sys.executable, "-m", "fairseq_csp.report", runs, "--user-dir"]
    rows = table(succeed(*command, tmp_path / "somebodys"), "Results")
    rows = {row["seeds"]: row["setting"] for row in rows if row["attention"] == "mine"}
    assert rows == {"1, 2": "--mine-width 3", "3": "--mine-width 4"}
    answer = call(*command, tmp_path / "none")
    assert answer.returncode == 2
    assert "none is no directory with an __init__.py" in answer.stderr


LATER_FLAGS = [
    # each made before the flag was there, or where another function's option has another value
    ("model", "csp_order", None),
    ("model", "keep_padding", None),
    ("model", "chunk_size", None),
    ("model", "sentence_class_num", None),  # the architecture's 10, not the flag's 2
    ("model", "agent_tokens", 7),
    ("model", "encoder_attention_heads", 2),
    ("model", "attention_activation_fn", "laplace"),
    ("model", "dropout", 0.1),
    ("task", "sen_rep_type", None),
    ("task", "no_shuffle", None),
    ("optimizer", "weight_decay", None),
    ("optimizer", "lr", None),  # that of the optimization
    ("lr_scheduler", "warmup_init_lr", None),
    ("optimization", "use_bmuf", None),
    ("common", "amp", None),
]


def test_runs_of_one_configuration_are_one_row_whenever_they_were_made(runs, capsys):
    for seed, (group, key, value) in enumerate(LATER_FLAGS, start=2):
        for file in another(runs, f"seed-{seed}").glob("checkpoint_*.pt"):
            state = torch.load(file, weights_only=True)
            state["cfg"]["common"]["seed"] = seed
            if value is None:
                del state["cfg"][group][key]
            else:
                state["cfg"][group][key] = value
            torch.save(state, file)
    rows = table(report(capsys, runs), "Results")
    assert [row["setting"] for row in rows] == [""]
    assert rows[0]["seeds"] == ", ".join(str(1 + k) for k in range(1 + len(LATER_FLAGS)))


@pytest.mark.parametrize(
    ("group", "key", "value", "shown"),
    [
        ("model", "csp_order", "sort_shift", "--csp-order sort_shift"),
        ("model", "z_dim", 5, ""),  # CSP has no queries
        ("model", "n_dim", 5, "--n-dim 5"),
        ("optimization", "lr", [0.1], "--lr 0.1"),
        ("common", "bf16", True, "--bf16 True"),
        ("model", "a_flag_of_another_version", 3, "--a-flag-of-another-version 3"),
    ],
)
def test_runs_that_differ_are_rows_of_their_own(runs, capsys, group, key, value, shown):
    another(runs, "other", {(group, key): value, ("common", "seed"): 2})
    settings = {row["seeds"]: row["setting"] for row in table(report(capsys, runs), "Results")}
    if shown:
        assert settings["2"] == shown
    else:
        assert settings == {"1, 2": ""}


def test_options_of_an_unknown_function_do_not_take_the_report_down(runs, capsys):
    mine = {("model", "attention"): "mine", ("model", "mine_width"): 3}
    another(runs, "mine-1", mine)
    another(runs, "mine-2", {**mine, ("common", "seed"): 2, ("model", "csp_shift"): "none"})
    rows = {row["attention"]: row for row in table(report(capsys, runs), "Results")}
    assert (rows["mine"]["seeds"], rows["mine"]["setting"]) == ("1, 2", "")


def test_a_run_that_was_resumed_with_other_flags_is_marked(runs, capsys):
    another(runs, "plain", {("common", "seed"): 2})
    (runs / "seed-1" / "command.jsonl").write_text(
        '{"started": "1"}\n{"started": "2", "changed": {"--lr": ["0.1", "0.2"]}}\ndamaged\n'
        '{"started": "3", "changed": {"--seed": ["0", "1"], "--lr": [null, "1"]}}\n{}\n'
    )
    text = report(capsys, runs)
    assert [row["changed"] for row in table(text, "Runs")] == ["", "--lr --seed"]
    assert [row["seeds"] for row in table(text, "Results")] == ["1*, 2"]


def test_a_seed_that_was_run_twice_counts_once(runs, capsys):
    another(runs, "again", accuracy=50.0)
    (row,) = table(report(capsys, runs), "Results")
    assert (row["seeds"], row["test %"]) == ("1", "50.00")


def test_runs_that_did_not_end_are_listed_as_such(runs, capsys):
    crashed = runs / "crashed"
    crashed.mkdir()
    (crashed / "command.jsonl").write_text('{"started": "now", "machine": "m", "gpus": []}\n')
    (crashed / "result.json").write_text('{"exit_status": 1}')
    killed = another(runs, "killed")
    (killed / "result.json").write_text('{"exit_status": -9}')
    unfinished = another(runs, "unfinished", {("optimization", "max_update"): 100})
    log = (unfinished / "train.log").read_text()
    (unfinished / "train.log").write_text(log.replace("done training", ""))
    damaged = runs / "damaged"
    damaged.mkdir()
    (damaged / "checkpoint_last.pt").write_bytes(b"PK\3\4 half a file")
    (runs / "alone.log").write_text(log.partition("epoch 001")[0])
    (runs / "directory.log").mkdir()

    text = report(capsys, runs)
    states = {row["run"].rpartition("/")[2]: row["status"] for row in table(text, "Runs")}
    damage = states.pop("damaged")
    assert states == {
        "alone.log": "no update was logged",
        "crashed": "crashed (exit status 1)",
        "killed": "crashed (SIGKILL)",
        "seed-1": "not tested",
        "unfinished": "unfinished",
    }
    assert damage.startswith("checkpoint cannot be read")
    # none of them counts
    assert [row["seeds"] for row in table(text, "Results")] == ["1"]


def test_the_stages_of_a_run_are_no_results_of_their_own(runs, capsys):
    whole = another(runs, "whole", accuracy=50.0)
    (whole / "command.jsonl").write_text('{"command": "last", "stages": ["first <a>"]}\n')
    stage = shutil.copytree(runs / "seed-1", whole / "stages" / "1-short")
    (stage / "result.json").write_text('{"exit_status": 0}')
    # a directory of that name elsewhere holds runs as any other does
    (runs / "seed-1").rename(runs / "stages")
    (runs / "stages" / "seed-2").mkdir()
    (runs / "stages" / "checkpoint_last.pt").rename(runs / "stages/seed-2/checkpoint_last.pt")
    (runs / "stages" / "checkpoint_best.pt").unlink()
    (runs / "stages" / "train.log").rename(runs / "stages/seed-2/train.log")
    text = report(capsys, runs)
    states = {row["run"].rpartition("/")[2]: row["status"] for row in table(text, "Runs")}
    expected = {"1-short": "stage of a run", "seed-2": "not tested", "whole": "finished"}
    assert states == expected
    assert main([str(whole), "--test"]) == 0
    capsys.readouterr()
    (row,) = table(report(capsys, whole), "Results")
    assert row["test %"] == "50.00"
    assert main([str(whole), "--out", str(runs / "report.html")]) == 0
    assert "<pre>first &lt;a&gt;\nlast</pre>" in (runs / "report.html").read_text()


@pytest.mark.parametrize("content", ["", '{"started": "no', '{"words": []}\n{"wor', "[]", "\xff"])
@pytest.mark.parametrize("name", ["command.jsonl", "result.json"])
def test_a_run_with_a_damaged_record_is_listed_as_such(runs, capsys, name, content):
    (another(runs, "damaged") / name).write_text(content, encoding="latin-1")
    damaged, whole = table(report(capsys, runs), "Runs")
    assert damaged["status"] == f"record cannot be read ({name})"
    assert whole["status"] == "not tested"


@pytest.mark.parametrize("content", [[1], torch.ones(2), {"cfg": 1}, {"model": None}])
def test_what_is_no_checkpoint_is_listed_as_such(runs, capsys, content):
    (runs / "other").mkdir()
    torch.save(content, runs / "other" / "checkpoint_last.pt")
    other, whole = table(report(capsys, runs), "Runs")
    assert other["status"].startswith("checkpoint cannot be read")
    assert whole["status"] == "not tested"


def test_a_run_without_a_log_is_read_from_its_checkpoint(runs, capsys):
    (before,) = table(report(capsys, runs), "Results")
    (runs / "seed-1" / "train.log").unlink()
    (after,) = table(report(capsys, runs), "Results")
    assert after == before


def test_published_numbers_stand_beside_full_data_only(runs, capsys):
    another(runs, "full", {("task", "data"): "/data/listops"})
    rows = {row["data set"]: row for row in table(report(capsys, runs), "Results")}
    assert rows["listops"]["published %"] == "63.14 (MEGA)"
    assert rows["listops-tiny"]["published %"] == ""


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ({"limited": True, "source": {"sha256": "0"}}, ""),
        ({"limited": False, "source": {"generator": "listops", "seed": 1}}, ""),
        ({"limited": False, "source": {"sha256": "0"}}, "63.14 (MEGA)"),
        ("damaged", "63.14 (MEGA)"),
    ],
)
def test_published_numbers_do_not_stand_beside_limited_or_generated_data(
    runs, tmp_path, capsys, summary, expected
):
    names = [tmp_path / name / "listops" for name in ("here", "gone")]
    for seed, data in enumerate(names):
        another(runs, f"of-{seed}", {("task", "data"): str(data), ("common", "seed"): seed})
    names[0].mkdir(parents=True)
    # on several lines, as the preparation writes it
    (names[0] / "summary.json").write_text(json.dumps(summary, indent=2))
    rows = {row["data set"]: row for row in table(report(capsys, runs), "Results")}
    assert rows["listops"]["seeds"] == "0, 1"
    assert rows["listops"]["published %"] == expected


def test_the_page_needs_nothing_else(runs, capsys):
    another(runs, "<b>&", {("common", "seed"): 2})
    page = runs / "report.html"
    assert main([str(runs), "--out", str(page)]) == 0
    text = page.read_text()
    assert "<svg" in text
    assert not re.search(r"\b(src|href)=\"(?!#)|<link|@import|url\(\s*['\"]?http", text)
    assert "&lt;b&gt;&amp;" in text
    assert "<b>&" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{runs}/none"], "is no directory"),
        (["{runs}/empty"], "there is no training run in"),
        (["{runs}", "--out", "report.pdf"], "must end in .html or .md"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        main([word.format(runs=tmp_path) for word in words])


@pytest.mark.parametrize("kind", [".html", ".md"])
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("directory", "it must be a file"),
        ("file/report", "cannot be written"),
        ("/proc/report", "cannot be written"),
    ],
)
def test_where_nothing_can_be_written_one_sentence_says_so(runs, tmp_path, out, message, kind):
    (tmp_path / f"directory{kind}").mkdir()
    (tmp_path / "file").touch()
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        main([str(runs), "--out", str(tmp_path / f"{out}{kind}")])
    assert set(tmp_path.rglob("*")) == before


def test_no_half_of_a_markdown_report_is_left(runs, tmp_path):
    (tmp_path / "report").touch()
    with pytest.raises(UserError, match="cannot be written"):
        main([str(runs), "--out", str(tmp_path / "report.md")])
    assert not (tmp_path / "report.md").exists()


def test_tensorboard_has_the_useful_scalars(trained_run, updates):
    scalars = {}
    for split in ("train_inner", "train", "valid"):
        events = EventAccumulator(str(trained_run / "tensorboard" / split))
        events.Reload()
        scalars[split] = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for name in ("loss", "accuracy", "lr", "gnorm", "wps"):
        assert name in scalars["train_inner"]
        assert name in scalars["train"]
    assert {"loss", "accuracy"} <= set(scalars["valid"])
    steps = [event.step for event in scalars["train_inner"]["loss"]]
    assert steps == list(range(1, updates + 1))
    log = (trained_run / "train.log").read_text()
    (last,) = set(re.findall(rf"accuracy=([\d.]+), .*num_updates={updates},", log))
    assert scalars["train_inner"]["accuracy"][-1].value == pytest.approx(float(last), abs=0.001)
