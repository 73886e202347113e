"""``fairseq-hydra-train`` trains what ``fairseq-train --arch`` does, by a file that ships."""

import pytest

from tests.helpers.commands import ROOT, call, logged, succeed

DATA = ROOT / "tests" / "golden" / "earlier" / "data"
HYDRA = ["fairseq-hydra-train", "--config-dir", "fairseq_csp/hydra", "--config-name"]
SMALL = {"encoder_embed_dim": 8, "encoder_layers": 1, "dropout": 0.2}


def by_hydra(save_dir, arch, **others):
    values = {
        "task.data": DATA,
        "model._name": arch,
        "model.attention": "null",
        "optimization.max_update": 2,
        "lr_scheduler.warmup_updates": 1,
        "dataset.batch_size": 4,
        "checkpoint.save_dir": save_dir,
        "common.cpu": "true",
        "common.log_interval": 1,
        "common.log_format": "json",
        **{f"+model.{name}": value for name, value in SMALL.items()},
        **others,
    }
    return [*HYDRA, "listops-demo", *(f"{name}={value}" for name, value in values.items())]


def losses(log):
    return [entry["loss"] for entry in logged(log, "train_inner")] or [
        line.split('"loss": "')[1].split('"')[0]
        for line in log.splitlines()
        if line.startswith('{"epoch"') and '"update"' in line
    ]


@pytest.mark.parametrize(
    "arch", ["mega_lra_listop", "transformer_lra_listop", "flash_lra_listop", "lstm_lra_listop"]
)
def test_the_same_losses(arch, tmp_path):
    one = losses(succeed(*by_hydra(tmp_path / "hydra", arch)))
    other = losses(
        succeed(
            "fairseq-train", DATA, "--user-dir", "fairseq_csp", "--task", "lra-text",
            "--arch", arch, "--sen-rep-type", "mp", "--criterion", "lra_cross_entropy",
            "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--clip-norm", "1.0",
            "--lr", "0.004", "--lr-scheduler", "linear_decay", "--warmup-updates", "1",
            "--total-num-update", "400", "--max-update", "2", "--batch-size", "4",
            "--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric",
            "--save-dir", tmp_path / "train", "--cpu", "--log-interval", "1",
            "--log-format", "json",
            *(word for name, value in SMALL.items()
              for word in (f"--{name.replace('_', '-')}", value)),
        )
    )  # fmt: skip
    assert len(one) == 2 and one == other


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"+model.dropout": 1.5}, "--dropout is 1.5, but must be at least 0 and below 1"),
        ({"criterion._name": "cross_entropy"}, "--criterion is cross_entropy"),
        ({"task.data": "nowhere"}, "nowhere"),
    ],
    ids=["range", "criterion", "data"],
)
def test_mistakes_are_one_sentence(others, message, tmp_path):
    answer = call(*by_hydra(tmp_path / "save", "mega_lra_listop", **others))
    assert answer.returncode == 1
    assert message in answer.stderr.splitlines()[-1]
    assert "Traceback" not in answer.stdout + answer.stderr
