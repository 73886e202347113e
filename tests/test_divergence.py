"""A run that diverges names the update, keeps its last good checkpoint, and ends with an error."""

import pytest
import torch

from fairseq_csp.errors import UserError
from fairseq_csp.tasks.lra import LRATask
from tests.helpers.commands import call, generate_listops, training_command
from tests.helpers.generated import write_images, write_text
from tests.helpers.running import TINY, train
from tests.test_distributed import start_pair

IMAGES = [*TINY, "--task", "lra-image", "--arch", "mega_lra_pf32"]
TEXTS = [*TINY, "--task", "lra-text", "--arch", "mega_lra_imdb"]
HUGE = ["--lr", "1e30"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    # three updates an epoch
    return {"image": write_images(root / "image"), "text": write_text(root / "text")}


def begin(data, save, *words):
    """Train for an epoch; return what its last checkpoint holds."""
    train(data, save, *words, updates=3)
    return (save / "checkpoint_last.pt").read_bytes()


@pytest.mark.parametrize("precision", [[], ["--bf16"]], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "words"), [("image", IMAGES), ("text", TEXTS)])
def test_a_huge_learning_rate(kind, words, precision, data, tmp_path):
    words = [*words, *precision]
    good = begin(data[kind], tmp_path, *words)
    with pytest.raises(UserError, match=r"update [45]: the \w+ is not finite; .* lower --lr"):
        train(data[kind], tmp_path, *words, *HUGE, updates=30)
    assert (tmp_path / "checkpoint_last.pt").read_bytes() == good
    # and the run goes on from there
    assert train(data[kind], tmp_path, *words, updates=4)["optimizer_history"][-1]


def poison(monkeypatch, update):
    """Let an update with a finite gradient leave a weight that is no number."""
    step = LRATask.optimizer_step

    def poisoned(task, optimizer, model, update_num):
        step(task, optimizer, model, update_num)
        if update_num + 1 == update:
            torch.nn.init.constant_(model.sentence_projection_layer.weight, float("nan"))

    monkeypatch.setattr(LRATask, "optimizer_step", poisoned)


@pytest.mark.parametrize(
    ("update", "flags", "message"),
    [
        # in the middle of an epoch, at its end with validation, and without
        (5, [], "update 6: the model is not finite"),
        (6, [], "update 6: the loss is not finite"),
        (6, ["--disable-validation"], "update 6: the model is not finite"),
    ],
)
def test_a_poisoned_weight_reaches_no_checkpoint(
    update, flags, message, data, tmp_path, monkeypatch
):
    good = begin(data["image"], tmp_path, *IMAGES)
    poison(monkeypatch, update)
    with pytest.raises(UserError, match=message):
        train(data["image"], tmp_path, *IMAGES, *flags, updates=30)
    assert (tmp_path / "checkpoint_last.pt").read_bytes() == good


@pytest.fixture(scope="module")
def listops(tmp_path_factory):
    return generate_listops(tmp_path_factory.mktemp("data") / "listops", train_size=16)


def test_the_command_ends_with_one_line(listops, tmp_path):
    answer = call(*training_command(listops, tmp_path, *HUGE, "--max-update", "9"))
    assert answer.returncode == 1
    assert "Traceback" not in answer.stdout + answer.stderr
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("update ") and "lengthen --warmup-updates" in last


def test_two_processes_end_together(listops, tmp_path):
    for process in start_pair(listops, tmp_path, *HUGE, "--max-update", "9"):
        log = process.communicate(timeout=120)[0]
        assert process.returncode == 1
        assert "Traceback" not in log
        assert log.splitlines()[-1].startswith("update ")
