"""Calling the real commands as a user would, for the end-to-end tests."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent
# as a user would have it: the environment's commands first on the path
ENVIRONMENT = {**os.environ, "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}
# fmt: off
SMALL = [
    "--encoder-layers", "2", "--encoder-embed-dim", "16", "--encoder-hidden-dim", "32",
    "--encoder-ffn-embed-dim", "32", "--z-dim", "8", "--n-dim", "4", "--classifier-out-dim", "16",
]
# fmt: on


def start(*command, **environment):
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**ENVIRONMENT, **environment},
    )


def start_pair(command):
    """Start fairseq-train as two processes of one training, on CPUs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [
        *command,
        *("--ddp-backend", "legacy_ddp", "--distributed-backend", "gloo"),
        *("--distributed-world-size", "2", "--distributed-no-spawn"),
        *("--distributed-init-method", f"tcp://127.0.0.1:{port}"),
    ]
    return [start(*both, "--distributed-rank", rank) for rank in range(2)]


def call(*command):
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )


def succeed(*command):
    answer = call(*command)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


def logged(log, tag):
    """What fairseq logged as JSON under a tag, one dict a line."""
    return [json.loads(text) for text in re.findall(rf"\| {tag} \| (\{{.*\}})$", log, re.MULTILINE)]


def training_command(data, save_dir, *flags):
    return [
        "fairseq-train", data, "--user-dir", "fairseq_csp", "--save-dir", save_dir,
        "--task", "lra-text", "--arch", "mega_lra_listop", "--attention", "csp",
        "--criterion", "lra_cross_entropy", "--optimizer", "adam", "--lr", "0.004",
        "--lr-scheduler", "linear_decay", "--warmup-updates", "2", "--warmup-power", "2",
        "--total-num-update", "10", "--clip-norm", "1.0", "--batch-size", "8", "--cpu",
        "--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric",
        "--log-format", "json", "--log-interval", "1", "--sen-rep-type", "mp", *SMALL, *flags,
    ]  # fmt: skip


def train(data, save_dir, *flags):
    return succeed(*training_command(data, save_dir, *flags))


def validate(data, checkpoint, subset):
    log = succeed(
        "fairseq-validate", data, "--user-dir", "fairseq_csp", "--path", checkpoint,
        "--valid-subset", subset, "--log-format", "json",
    )  # fmt: skip
    return logged(log, subset)[-1]


def generate_listops(directory, train_size=60, other_size=21):
    succeed(
        sys.executable, "-m", "preprocess", "listops", "--out", directory,
        "--train-size", train_size, "--valid-size", other_size, "--test-size", other_size,
        "--min-length", "5", "--max-length", "40",
    )  # fmt: skip
    return directory


def hear_signals():
    """Before a command of a test: have it end by signals that the tests themselves may ignore."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
