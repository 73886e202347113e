"""What mixers keep besides weights, through two processes and a resumed training."""

import pytest
import torch

from tests.helpers import commands
from tests.helpers.commands import generate_listops, logged, train, training_command

PLAIN = ["--arch", "transformer_lra_listop", "--dropout", "0", "--attention-dropout", "0"]
PLAIN += ["--tie-layer-weights"]
FLAGS = {
    "dgqa": ["--attention", "dgqa", "--dgqa-window", "2"],
    "moh": ["--attention", "moh", "--moh-balance", "0.5"],
}


@pytest.fixture(scope="module")
def listops(tmp_path_factory):
    # one update takes in the whole of the train split
    return generate_listops(tmp_path_factory.mktemp("data") / "listops", train_size=16)


def weights(directory):
    return torch.load(directory / "checkpoint_last.pt", weights_only=False)["model"]


@pytest.mark.parametrize("name", FLAGS)
def test_two_processes_and_a_resumed_run(listops, tmp_path, name):
    flags = [*PLAIN, *FLAGS[name]]
    alone = train(listops, tmp_path / "alone", *flags, "--batch-size", "16", "--max-update", "4")
    pair = commands.start_pair(
        training_command(listops, tmp_path / "pair", *flags, "--max-update", "4")
    )
    logs = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(logs)
    train(listops, tmp_path / "resumed", *flags, "--batch-size", "16", "--max-update", "2")
    train(listops, tmp_path / "resumed", *flags, "--batch-size", "16", "--max-update", "4")
    whole, resumed = weights(tmp_path / "alone"), weights(tmp_path / "resumed")
    assert all(value.equal(resumed[key]) for key, value in whole.items())
    both = weights(tmp_path / "pair")
    if name == "dgqa":
        (cache,) = (value for key, value in whole.items() if key.endswith(".cache"))
        assert cache.ne(0).all()
        for key, value in whole.items():
            if key.endswith((".cache", ".alloc")):
                torch.testing.assert_close(both[key], value, rtol=1e-3, atol=0)
    else:
        one, two = (logged(log, "train_inner") for log in (alone, logs[0]))
        for entry, other in zip(one, two, strict=True):
            # of each process's own half: close, not equal
            assert float(other["auxiliary_loss"]) == pytest.approx(
                float(entry["auxiliary_loss"]), rel=0.05
            )
            assert float(other["loss"]) == pytest.approx(float(entry["loss"]), abs=0.02)
