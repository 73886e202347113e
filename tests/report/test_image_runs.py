"""Runs of image classification in the report."""

import json

from fairseq_csp import published, published_images
from fairseq_csp.report.__main__ import main
from fairseq_csp.report.tables import markdown
from tests.helpers.commands import ROOT
from tests.helpers.images import write_pixels
from tests.helpers.running import train
from tests.report.test_report import table

WORDS = [
    *("--task", "image-classification", "--arch", "vit_cifar10", "--attention", "sliceformer"),
    *("--criterion", "image_cross_entropy", "--encoder-layers", "1", "--encoder-embed-dim", "8"),
    *("--encoder-ffn-embed-dim", "8", "--encoder-attention-heads", "1", "--head-dim", "8"),
]


def test_an_epoch_that_was_chosen_on_test_is_told(tmp_path):
    data = write_pixels(tmp_path / "cifar10-rgb")
    for name, words in (("honest", []), ("published", ["--valid-subset", "test"])):
        run = tmp_path / "runs" / name
        train(data, run, *WORDS, *words, "--seed", len(name))
        (run / "result.json").write_text(json.dumps({"exit_status": 0, "accuracy": 50.0}))
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "report.md")]) == 0
    text = (tmp_path / "report.md").read_text()
    rows = table(text, "Results")
    assert [row["architecture"] for row in rows] == ["vit_cifar10"] * len(rows)
    assert "(best epoch chosen on test)" in " ".join(row["test %"] for row in rows)
    assert {row["published %"] for row in rows} == {"82.16 (Sliceformer, ascending)"}
    assert "## Published accuracy of image classification" in text
    assert "on the Long Range Arena" not in text


def test_what_stands_beside_a_run():
    assert (
        published.accuracy("vit", "softmax", "cifar10-rgb") == "80.98 (ViT, Sliceformer's authors)"
    )
    assert published.accuracy("vit", "csp", "cifar10-rgb") == ""
    assert published.accuracy("vit", "softmax", "cifar10-rgb-demo") == ""
    assert published.accuracy("mega", "csp", "cifar100") == ""
    assert set(published_images._BESIDE.values()) <= set(published_images.PUBLISHED)
    assert all(len(row) == len(published_images.table()[0]) for row in published_images.table()[1])


def test_the_document_shows_the_table():
    text = (ROOT / "docs" / "vision.md").read_text(encoding="utf-8")
    assert markdown(*published_images.table()) in text
