"""Lint, format, types and shell scripts."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("check", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff(check):
    answer = subprocess.run(
        [sys.executable, "-m", "ruff", *check, "."], capture_output=True, text=True, cwd=ROOT
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_types(tmp_path):
    """Of operators, modules, models and recipes, as pyproject.toml sets it."""
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_shellcheck():
    scripts = [*ROOT.glob("*.sh"), *ROOT.glob("tests/*.sh"), ROOT / ".ci" / "run"]
    shellcheck = Path(sys.executable).parent / "shellcheck"
    answer = subprocess.run([shellcheck, "-x", *scripts], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stdout + answer.stderr
