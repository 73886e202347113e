"""Two processes on CPUs give what one gives with the doubled batch."""

import socket

import pytest
from commands import generate_listops, logged, start, train, training_command

# fmt: off
PLAIN = ["--dropout", "0", "--attention-dropout", "0", "--max-update", "4"]
# fmt: on


@pytest.fixture(scope="module")
def listops(tmp_path_factory):
    # one update takes in the whole of the train split
    return generate_listops(tmp_path_factory.mktemp("data") / "listops", train_size=16)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_equal_one_with_the_doubled_batch(listops, tmp_path):
    alone = train(listops, tmp_path / "alone", *PLAIN, "--batch-size", "16")
    port = free_port()
    processes = [
        start(
            *training_command(listops, tmp_path / "pair", *PLAIN, "--batch-size", "8"),
            "--ddp-backend",
            "legacy_ddp",
            "--distributed-backend",
            "gloo",
            "--distributed-world-size",
            "2",
            "--distributed-no-spawn",
            "--distributed-init-method",
            f"tcp://127.0.0.1:{port}",
            "--distributed-rank",
            rank,
        )  # fmt: skip
        for rank in range(2)
    ]
    logs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(logs)
    pair = logs[0]
    for tag, keys in (("train_inner", ("loss", "gnorm", "accuracy")), ("valid", ("valid_loss",))):
        one, two = logged(alone, tag), logged(pair, tag)
        assert len(one) == len(two) == 4
        for key in keys:
            expected = [float(entry[key]) for entry in one]
            assert [float(entry[key]) for entry in two] == pytest.approx(expected, abs=0.002)
