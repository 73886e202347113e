"""What is said before training on a CPU."""

import sys

import pytest

from fairseq_csp.fairseq_patches import cpu_notices
from fairseq_csp.ops import mkl
from tests.helpers.generated import write_text
from tests.helpers.running import TINY, logged, train

SLOW = "--bf16: this processor has no instructions for bfloat16"
NO_EFFECT = "--amp has no effect on a CPU"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("flags", "limit", "said"),
    [
        (["--bf16"], "AVX2", SLOW),
        (["--amp"], "AVX2", NO_EFFECT),
        (["--amp"], None, NO_EFFECT),
        ([], "AVX2", None),
    ],
    ids=["bf16-without", "amp-without", "amp", "float32"],
)
def test_the_cost_is_said_before_training(data, tmp_path, monkeypatch, flags, limit, said):
    monkeypatch.setenv("LD_PRELOAD", "")
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    model = ["--task", "lra-text", "--arch", "lstm_lra_imdb", *TINY]
    with logged("fairseq_csp.fairseq_patches.cpu_notices") as lines:
        state = train(data, tmp_path, *model, *flags, updates=1)
    assert [line.startswith(said) for line in lines] == ([True] if said else [])
    assert state["optimizer_history"][-1]["num_updates"] == 1


@pytest.mark.parametrize(
    ("flags", "preload", "said"),
    [([], None, True), ([], "", False), (["--bf16"], None, False)],
    ids=["float32", "float32-chosen", "bf16"],
)
def test_products_that_could_be_faster(data, tmp_path, monkeypatch, flags, preload, said):
    monkeypatch.setattr(mkl, "_concerns_processor", lambda: True)
    monkeypatch.setattr(mkl, "_compiler", lambda: sys.executable)
    monkeypatch.setattr(cpu_notices, "has_bfloat16", lambda: True)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    if preload is not None:
        monkeypatch.setenv("LD_PRELOAD", preload)
    model = ["--task", "lra-text", "--arch", "lstm_lra_imdb", *TINY]
    with logged("fairseq_csp.fairseq_patches.cpu_notices") as lines:
        train(data, tmp_path, *model, *flags, updates=1)
    assert ["LD_PRELOAD=$(python -m fairseq_csp.ops.mkl)" in line for line in lines] == [
        True
    ] * said
