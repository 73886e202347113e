"""A data set that is not in this repository: an entry and a file in a user directory."""

import json
import sys

import pytest

from fairseq_csp import published
from fairseq_csp.datasets import DATASETS, DataSet, register_dataset
from fairseq_csp.recipes.flags import architecture
from fairseq_csp.recipes.lra import PRESETS, stages
from preprocess.__main__ import main
from tests.helpers.commands import ROOT, logged, succeed, training_command

ENTRY = """\
import fairseq_csp
from fairseq_csp.datasets import DataSet, register_dataset

register_dataset(
    DataSet(
        "parity",
        task="lra-text",
        suffix="listop",
        counts={"train": 60, "valid": 20, "test": 20},
        module="mine.parity",
        like="listops",
        generated=True,
        published={"MEGA": 99.5},
    )
)
"""
PREPARATION = '''\
"""Parity: whether a sequence of bits has an odd number of ones."""

from functools import partial

import numpy as np

from fairseq_csp.datasets import DATASETS
from preprocess.preparation import add_common_arguments, prepare
from preprocess.text_format import TextDatasetWriter

PARITY = DATASETS["parity"]


def add_arguments(parser):
    add_common_arguments(parser, PARITY)


def run(arguments):
    prepare(
        PARITY,
        arguments,
        partial(write, arguments.seed),
        expected=PARITY.counts,
        source=lambda: {"generator": "parity", "seed": arguments.seed},
        options={},
    )


def write(seed, directory):
    rng = np.random.default_rng(seed)
    with TextDatasetWriter(directory, symbols="01", labels="01") as writer:
        for split, count in PARITY.counts.items():
            for _ in range(count):
                bits = rng.integers(0, 2, rng.integers(5, 20))
                writer.add(split, bits.sum() % 2, bits)
        return writer.finish()
'''


@pytest.fixture
def user_dir(tmp_path):
    directory = tmp_path / "mine"
    directory.mkdir()
    (directory / "__init__.py").write_text(ENTRY)
    (directory / "parity.py").write_text(PREPARATION)
    return directory


def test_a_seventh_set_is_prepared_trained_and_reported(user_dir, tmp_path):
    data, run = tmp_path / "parity", tmp_path / "run"
    prepare = [sys.executable, "-m", "preprocess", "--user-dir", user_dir]
    assert "Parity: whether" in succeed(*prepare, "--help")
    assert f"parity: wrote {data}" in succeed(*prepare, "parity", "--out", data)
    assert json.loads((data / "summary.json").read_text())["limited"] is False
    command = training_command(data, run, "--max-update", "2", "--log-file", run / "train.log")
    command[command.index("--user-dir") + 1] = user_dir
    run.mkdir()
    log = succeed(*command)
    assert logged(log, "train")[-1]["train_num_updates"] == "2"
    report = succeed(sys.executable, "-m", "fairseq_csp.report", run)
    (row,) = [line for line in report.splitlines() if line.startswith("| parity | mega_")]
    assert row.split("|")[-2].strip() == ""  # no published number: not another data set's either


def test_a_user_directory_that_is_not_there_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--user-dir", str(tmp_path), "listops", "--demo"])
    assert caught.value.code == 2
    assert f"{tmp_path} is no directory with an __init__.py" in capsys.readouterr().err


@pytest.fixture
def parity(monkeypatch):
    """The entry in this process, until the test is over."""
    entry = DataSet(
        "parity", "lra-text", "listop", {}, "mine.parity", like="listops", published={"MEGA": 99.5}
    )
    monkeypatch.setitem(DATASETS, "parity", entry)
    return entry


def test_the_tables_take_it_in(parity):
    assert published.accuracy("mega", "csp", "parity") == "99.50 (MEGA)"
    assert published.accuracy("transformer", None, "parity") == ""
    assert architecture("mega", "parity") == "mega_lra_listop"
    for preset in PRESETS.keys() - {"small"}:
        assert stages("mega", "parity", preset) == stages("mega", "listops", preset)


def test_a_name_belongs_to_one_set(parity):
    assert register_dataset(parity) is parity
    other = DataSet("parity", "lra-image", "pf32", {}, "theirs.parity")
    with pytest.raises(ValueError, match="there is a data set parity already"):
        register_dataset(other)
    assert DATASETS["parity"] is parity


def test_every_entry_has_its_file_and_its_row_in_the_manual():
    manual = (ROOT / "lra_data" / "README.md").read_text(encoding="utf-8")
    for name, data_set in DATASETS.items():
        assert (ROOT / f"{data_set.module.replace('.', '/')}.py").is_file()
        counts = " / ".join(f"{count:,}" for count in data_set.counts.values())
        (row,) = [line for line in manual.splitlines() if line.startswith(f"| `{name}` | {counts}")]
        if data_set.download is not None:
            assert data_set.download.address in manual
