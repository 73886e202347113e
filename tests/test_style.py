"""Lint, format, shell scripts and what must not be committed."""

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


def test_shellcheck():
    scripts = [*ROOT.glob("*.sh"), *ROOT.glob("tests/*.sh"), ROOT / ".ci" / "run"]
    shellcheck = Path(sys.executable).parent / "shellcheck"
    answer = subprocess.run([shellcheck, "-x", *scripts], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stdout + answer.stderr
