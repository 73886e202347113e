"""Checkpoints that this project wrote at commit 9a53535 load, validate and resume as they did then.

``golden/earlier`` holds one of each family after 2 updates on 16 examples of ListOps, and what that
commit's fairseq-validate and fairseq-train made of them.
"""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from tests.helpers.commands import ENVIRONMENT, call, logged, succeed

EARLIER = Path(__file__).parent / "golden" / "earlier"
EXPECTED = json.loads((EARLIER / "expected.json").read_text())
FLAGS = shlex.split("""
    --task lra-text --sen-rep-type mp --criterion lra_cross_entropy --optimizer adam
    --adam-betas (0.9,0.98) --clip-norm 1.0 --lr 0.01 --lr-scheduler linear_decay
    --warmup-updates 2 --total-num-update 10 --batch-size 4 --best-checkpoint-metric accuracy
    --maximize-best-checkpoint-metric --cpu --num-workers 0 --log-interval 1
    --no-epoch-checkpoints --log-format json --encoder-layers 1 --encoder-embed-dim 4
    --encoder-hidden-dim 6 --encoder-ffn-embed-dim 6 --encoder-attention-heads 2 --z-dim 4
    --n-dim 2 --classifier-out-dim 4 --max-positions 40
""")
CSP_SHIFT = {"mega": "linear", "transformer": "exponential"}


@pytest.mark.parametrize("name", EXPECTED)
def test_an_earlier_checkpoint_validates_and_resumes(name, tmp_path, monkeypatch):
    # the numbers that dropout draws are those of the time before there were kernels
    monkeypatch.setitem(ENVIRONMENT, "FAIRSEQ_CSP_KERNELS", "reference")
    expected = EXPECTED[name]
    log = succeed(
        "fairseq-validate", EARLIER / "data", "--user-dir", "fairseq_csp", "--cpu",
        "--path", EARLIER / f"{name}.pt", "--valid-subset", "test", "--log-format", "json",
    )  # fmt: skip
    found = logged(log, "test")[-1]
    for key, value in expected["test"].items():
        assert float(found[f"test_{key}"]) == pytest.approx(value, abs=1e-3)

    shutil.copy(EARLIER / f"{name}.pt", tmp_path / "checkpoint_last.pt")
    family, _, attention = name.partition("-")
    words = [*FLAGS, "--arch", f"{family}_lra_listop", "--max-update", "6"]
    if attention:
        words += ["--attention", "csp", "--csp-shift", CSP_SHIFT[family]]
    answer = call(
        "fairseq-train", EARLIER / "data", "--user-dir", "fairseq_csp", "--save-dir", tmp_path,
        *words,
    )  # fmt: skip
    log = answer.stdout + answer.stderr
    assert answer.returncode == 0, log
    resumed = {entry["num_updates"]: entry for entry in logged(log, "train_inner")}
    assert resumed.keys() == expected["resumed"].keys()
    for update, values in expected["resumed"].items():
        for key, value in values.items():
            assert float(resumed[update][key]) == pytest.approx(value, abs=2e-3)
    for entry in logged(log, "valid"):
        for key, value in expected["valid"][entry["valid_num_updates"]].items():
            assert float(entry[f"valid_{key}"]) == pytest.approx(value, abs=2e-3)
