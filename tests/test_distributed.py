"""Two processes on CPUs give what one gives with the doubled batch, and end and resume together."""

import re
import signal

import pytest
import torch

from tests.helpers import commands
from tests.helpers.building import small, tokens
from tests.helpers.commands import generate_listops, logged, train, training_command
from tests.helpers.wrapped import in_torchs_wrapper

PLAIN = ["--dropout", "0", "--attention-dropout", "0"]


@pytest.fixture(scope="module")
def listops(tmp_path_factory):
    # one update takes in the whole of the train split
    return generate_listops(tmp_path_factory.mktemp("data") / "listops", train_size=16)


def start_pair(listops, save_dir, *flags):
    return commands.start_pair(
        training_command(listops, save_dir, *PLAIN, "--batch-size", "8", *flags)
    )


def finish(pair):
    logs = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(logs)
    return logs[0]


@pytest.fixture(scope="module")
def whole(listops, tmp_path_factory):
    """Directory and log of a pair that nothing interrupts."""
    save_dir = tmp_path_factory.mktemp("pair")
    return save_dir, finish(start_pair(listops, save_dir, "--max-update", "40"))


def test_two_processes_equal_one_with_the_doubled_batch(listops, whole, tmp_path):
    alone = train(listops, tmp_path, *PLAIN, "--batch-size", "16", "--max-update", "4")
    for tag, keys in (("train_inner", ("loss", "gnorm", "accuracy")), ("valid", ("valid_loss",))):
        one, two = logged(alone, tag), logged(whole[1], tag)[:4]
        assert len(one) == len(two) == 4
        for key in keys:
            expected = [float(entry[key]) for entry in one]
            assert [float(entry[key]) for entry in two] == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_one_of_two_is_killed(listops, whole, tmp_path, killed):
    """The other one ends with an error within a minute, and the pair resumes."""
    pair = start_pair(listops, tmp_path, "--max-update", "40")
    for line in pair[0].stdout:
        if re.search(r"Saved checkpoint .*@ 2 updates", line):
            break
    pair[killed].kill()
    pair[1 - killed].communicate(timeout=60)
    assert pair[killed].wait() == -signal.SIGKILL
    assert pair[1 - killed].returncode not in (0, -signal.SIGKILL)

    resumed = finish(start_pair(listops, tmp_path, "--max-update", "40"))
    steps = [step["num_updates"] for step in logged(resumed, "train_inner")]
    assert "Loaded checkpoint" in resumed
    assert 2 < int(steps[0]) <= int(steps[-1]) == 40
    weights = [
        torch.load(save_dir / "checkpoint_last.pt", weights_only=True)["model"]
        for save_dir in (whole[0], tmp_path)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_torchs_own_wrapper_gives_the_same_gradients(tmp_path):
    model = small("mega_lra_listop", attention="csp")
    inputs = tokens([11, 7, 16])

    def gradients_of(called):
        model.zero_grad()
        called(*inputs).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    alone = gradients_of(model)
    # the wrapper's second step fails where a parameter took no part in the first
    first, second = in_torchs_wrapper(
        model, tmp_path, lambda wrapped: [gradients_of(wrapped) for _ in range(2)]
    )
    torch.testing.assert_close(first, alone)
    torch.testing.assert_close(second, alone)
