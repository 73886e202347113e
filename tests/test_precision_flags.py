"""What --bf16 and --amp say before training on a CPU."""

import pytest

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
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    model = ["--task", "lra-text", "--arch", "lstm_lra_imdb", *TINY]
    with logged("fairseq_csp.fairseq_patches.precision") as lines:
        state = train(data, tmp_path, *model, *flags, updates=1)
    assert [line.startswith(said) for line in lines] == ([True] if said else [])
    assert state["optimizer_history"][-1]["num_updates"] == 1
