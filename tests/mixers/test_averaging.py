"""Published attention weights go into grouped queries through the command."""

from tests.helpers.commands import train


def test_finetuning_from_softmax(tiny_listops, tmp_path):
    flags = ["--arch", "transformer_lra_listop", "--encoder-attention-heads", "4"]
    train(tiny_listops, tmp_path / "own", *flags, "--attention", "softmax", "--max-update", "1")
    log = train(
        tiny_listops, tmp_path / "grouped", *flags, "--attention", "gqa", "--gqa-heads", "2",
        "--finetune-from-model", tmp_path / "own" / "checkpoint_last.pt", "--max-update", "2",
    )  # fmt: skip
    assert "averaged keys and values of 4 heads to 2" in log
