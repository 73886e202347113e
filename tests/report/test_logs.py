"""Reading fairseq's logs, whatever their format."""

import pytest

from fairseq_csp.report.logs import Point, read_log

CONFIG = (
    "{'_name': None, 'common': {'_name': None, 'seed': 3, 'log_file': \"/a: b, 'c'.log\"}, "
    "'model': {'_name': 'mega_lra_listop', 'layer_type': mega, 'csp_order': shift_sort, "
    "'attention': None, "
    "'sentence_class_num': 10}, 'optimization': {'max_update': 4, 'lr': [0.004]}}"
)
SIMPLE = [
    "epoch 001:      2 / 4 loss=3.3, accuracy=15.9, wps=35, ups=2.6, num_updates=2, lr=0.002",
    "epoch 001 | valid on 'valid' subset | loss 2.75 | accuracy 30.2 | wps 15 | num_updates 4",
    "epoch 001 | loss 3.078 | accuracy 24.467 | wps 4351.1 | num_updates 4 | lr 0.0034 | wall 3",
]
JSON = [
    '{"epoch": 1, "update": 0.5, "loss": "3.3", "accuracy": "15.9", "num_updates": "2"}',
    '{"epoch": 1, "valid_loss": "2.75", "valid_accuracy": "30.2", "valid_num_updates": "4"}',
    '{"epoch": 1, "train_loss": "3.078", "train_accuracy": "24.467", "train_num_updates": "4"}',
]
CURVES = {
    "train_inner": {2: Point(3.3, 15.9)},
    "valid": {4: Point(2.75, 30.2)},
    "train": {4: Point(3.078, 24.467)},
}


@pytest.fixture
def read(tmp_path):
    def write_and_read(*lines):
        file = tmp_path / "train.log"
        file.write_text("".join(f"{line}\n" for line in lines))
        return read_log([file])

    return write_and_read


@pytest.mark.parametrize("lines", [SIMPLE, JSON], ids=["simple", "json"])
@pytest.mark.parametrize("prefix", ["", "2026-11-22 03:13:40 | INFO | train_inner | "])
def test_formats_give_the_same_points(read, lines, prefix):
    log = read(CONFIG, *(prefix + line for line in lines), "done training in 1.2 seconds")
    assert log.curves == CURVES
    assert log.trained
    assert log.raised is None


def test_the_configuration_is_read_with_its_bare_words(read):
    log = read(CONFIG)
    assert log.config["common"] == {"_name": None, "seed": 3, "log_file": "/a: b, 'c'.log"}
    assert log.config["model"]["layer_type"] == "mega"
    assert log.config["model"]["csp_order"] == "shift_sort"
    assert log.config["optimization"] == {"max_update": 4, "lr": [0.004]}


def test_repeated_lines_count_once_and_a_resumed_run_replaces_what_it_does_again(read):
    again = [line.replace("15.9", "16.0") for line in SIMPLE]
    log = read(CONFIG, *SIMPLE, *SIMPLE, "done training in 1.2 seconds", CONFIG, again[0])
    assert log.curves["train_inner"] == {2: Point(3.3, 16.0)}
    assert not log.trained


def test_a_traceback_is_told_by_its_last_line(read):
    log = read(
        CONFIG, "Traceback (most recent call last):", '  File "x.py", line 1', "    f()",
        "FloatingPointError: Minimum loss scale reached", "done",
    )  # fmt: skip
    assert log.raised == "FloatingPointError: Minimum loss scale reached"


def test_a_line_that_was_cut_off_is_no_point(read):
    log = read(CONFIG, SIMPLE[0][:40], JSON[0][:40], SIMPLE[1][:50])
    assert log.curves == {}


def test_fairseq_writes_each_line_once(trained_run):
    lines = (trained_run / "train.log").read_text().splitlines()
    of_epochs = [line for line in lines if line.startswith("epoch ")]
    # the second epoch is there
    assert {line.partition(" ")[2][:3] for line in of_epochs} == {"001", "002"}
    assert len(set(of_epochs)) == len(of_epochs)
