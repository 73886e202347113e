"""What importing the package does: nothing to fairseq, unless fairseq imports a user directory."""

import shutil
import sys

import pytest

from tests.helpers.commands import ROOT, call, generate_listops, training_command

USER_DIRECTORY = """
import fairseq_csp
import {name}.doubled
"""
DOUBLED = '''
"""Twice the values."""

from fairseq_csp.modules.attention import ValueAttention, register_attention


@register_attention("doubled")
class Doubled(ValueAttention):
    def forward(self, values, lengths):
        return 2 * values
'''
FRESH = """
import sys, time
import torch
start = time.process_time()
{program}
took = time.process_time() - start
assert not [name for name in sys.modules if name.partition(".")[0] == "fairseq"], sys.modules
assert took < {seconds}, took
"""


@pytest.fixture(scope="module")
def listops(tmp_path_factory):
    return generate_listops(tmp_path_factory.mktemp("data") / "listops", train_size=16)


@pytest.mark.parametrize(
    "program",
    [
        "import fairseq_csp; fairseq_csp.__version__",
        "from fairseq_csp import channel_wise_sample_permutation, permutation_matrix",
    ],
)
def test_the_operator_comes_without_fairseq(program):
    answer = call(sys.executable, "-c", FRESH.format(program=program, seconds=0.1))
    assert answer.returncode == 0, answer.stderr


def test_attention_functions_come_without_fairseq():
    program = "from fairseq_csp import build_attention; build_attention('csp', value_dim=4)"
    answer = call(sys.executable, "-c", FRESH.format(program=program, seconds=2))
    assert answer.returncode == 0, answer.stderr


def test_an_unknown_name_is_no_attribute():
    answer = call(sys.executable, "-c", "from fairseq_csp import nonsense")
    assert "ImportError: cannot import name 'nonsense'" in answer.stderr


def words(listops, save, user_dir, *others):
    command = training_command(listops, save, "--max-update", "1", *others)
    command[command.index("fairseq_csp")] = user_dir
    return command


def test_a_user_directory_that_imports_the_package(listops, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "__init__.py").write_text(USER_DIRECTORY.format(name="mine"))
    (mine / "doubled.py").write_text(DOUBLED)
    answer = call(*words(listops, tmp_path / "save", mine, "--attention", "doubled"))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    answer = call(
        "fairseq-validate", listops, "--user-dir", mine, "--path",
        tmp_path / "save" / "checkpoint_best.pt", "--valid-subset", "test",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("kind", ["link", "copy"])
def test_the_package_under_another_name(kind, listops, tmp_path):
    other = tmp_path / "other_name"
    if kind == "link":
        other.symlink_to(ROOT / "fairseq_csp")
    else:
        shutil.copytree(ROOT / "fairseq_csp", other)
    answer = call(*words(listops, tmp_path / "save", other))
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert f"{other} is fairseq_csp under another name, other_name" in answer.stderr


@pytest.mark.parametrize("kind", ["link", "copy"])
def test_the_package_in_another_place(kind, listops, tmp_path):
    other = tmp_path / "place" / "fairseq_csp"
    other.parent.mkdir()
    if kind == "link":
        other.symlink_to(ROOT / "fairseq_csp")
    else:
        shutil.copytree(ROOT / "fairseq_csp", other)
    answer = call(*words(listops, tmp_path / "save", other))
    assert answer.returncode == 0, answer.stdout + answer.stderr
