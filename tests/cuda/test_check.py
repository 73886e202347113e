"""What a GPU would be asked for, checked without one; see check.py."""

import re
import shutil
import sys

import pytest
import torch
from torch.utils import cpp_extension

from tests.helpers.commands import call, succeed

# of each planted fault: words of what must be found
FOUND = {
    "number": "_local_scalar_dense: the host waits",
    "condition": "_local_scalar_dense: the host waits",
    "mask": "nonzero",
    "masked write": "index_put by a mask: the host waits",
    "to the host": "_to_copy to the host",
    "blocking copy": "_to_copy to the device without non_blocking",
    "new tensor": "_to_copy to the device without non_blocking",
    "index on the host": "on the device and on the host",
    "bfloat16 FFT": "Unsupported dtype BFloat16",
    "float16 FFT": "_fft_r2c in float16",
    "loop": "launches for 6 sequences",
    "launches": "launches, ",
    "copies": "copies from the host",
}


@pytest.fixture(scope="module")
def library():
    if torch.version.cuda is not None:
        pytest.skip("PyTorch has a device of this name: run pytest -m gpu")
    if shutil.which(cpp_extension.get_cxx_compiler()) is None:
        pytest.skip("there is no C++ compiler")
    return succeed(sys.executable, "-m", "tests.cuda.device").splitlines()[-1]


def assert_no_fault(library, cells):
    answer = call(sys.executable, "-m", "tests.cuda.check", "--library", library, "--cells", cells)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert re.search(r"^\d\d+ cells, 0 with a fault$", answer.stdout, re.MULTILINE)


def test_every_function(library):
    assert_no_fault(library, "functions")


@pytest.mark.slow
def test_every_cell(library):
    assert_no_fault(library, "all")


def test_planted_faults_are_found(library):
    answer = call(sys.executable, "-m", "tests.cuda.faults", library)
    assert answer.returncode == 0, answer.stderr
    found = [line.split("\t") for line in answer.stdout.splitlines()]
    assert {name for name, _ in found} == set(FOUND)
    for name, words in FOUND.items():
        assert any(
            words in fault and (name == "copies" or fault.startswith("fairseq_csp/"))
            for other, fault in found
            if other == name
        ), (name, found)
