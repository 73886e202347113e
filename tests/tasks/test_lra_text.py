"""Text of one or two documents an example."""

import argparse
import itertools
import multiprocessing

import numpy as np
import pytest
import torch
from fairseq import models, tasks

from fairseq_csp.errors import UserError
from fairseq_csp.models.lra import LRAModel
from tests.helpers.generated import SPLITS, SYMBOLS, write_text
from tests.helpers.running import TINY, configuration, logged


def words(data, *others, arch="mega_lra_aan"):
    return (str(data), *TINY, "--task", "lra-text", "--arch", arch, *map(str, others))


def setup(data, *others, **options):
    cfg = configuration(*words(data, *others, **options))
    return tasks.setup_task(cfg.task), cfg


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("pairs") / "data", documents=2)


def samples(task, split="train"):
    dataset = task.dataset(split)
    return [dataset[index] for index in range(len(dataset))], dataset


def test_two_documents(pairs):
    task, cfg = setup(pairs, "--no-shuffle")
    assert task.documents == 2
    # the dictionary's own, the specials and <CLS>
    assert len(task.source_dictionary) == SYMBOLS + 4 + 1
    task.load_dataset("train")
    rows, dataset = samples(task)
    assert len(rows) == SPLITS["train"]
    batch = dataset.collater(rows)
    inputs = batch["net_input"]
    assert set(inputs) == {"src_tokens", "src_lengths", "src1_tokens", "src1_lengths"}
    # on the host, so that a GPU need not be asked for them
    assert isinstance(inputs["src_lengths"], np.ndarray)
    lengths, lengths1 = (torch.tensor(inputs[name]) for name in ("src_lengths", "src1_lengths"))
    assert not torch.equal(lengths, lengths1)
    for tokens, counts in ((inputs["src_tokens"], lengths), (inputs["src1_tokens"], lengths1)):
        assert tokens.shape == (len(rows), counts.max())
        for row, count in zip(tokens, counts, strict=True):
            assert row[count - 1] == task.dictionary.eos()
            assert (row[count:] == task.dictionary.pad()).all()
            assert (row[:count] != task.dictionary.pad()).all()
    # an example counts with both of its documents
    np.testing.assert_array_equal(dataset.sizes[0], (lengths + lengths1).numpy())
    np.testing.assert_array_equal(batch["target"], [row % 2 for row in range(len(rows))])
    assert batch["nsentences"] == len(rows)

    model = task.build_model(cfg.model).eval()
    assert model.classifier[0][0].in_features == 2 * 8
    with torch.no_grad():
        together = model(**inputs)
        # sides of different lengths in one batch; the order of the sides matters
        alone = torch.cat([model(**dataset.collater([row])["net_input"]) for row in rows])
        swapped = model(
            inputs["src1_tokens"], lengths1, inputs["src_tokens"], inputs["src_lengths"]
        )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert (together - swapped).abs().max() > 1e-4


def test_cls_stands_in_front_of_each_document(pairs):
    task, _ = setup(pairs, "--sen-rep-type", "cls", "--no-shuffle")
    task.load_dataset("valid")
    rows, dataset = samples(task, "valid")
    inputs = dataset.collater(rows)["net_input"]
    for side in ("src", "src1"):
        assert (inputs[f"{side}_tokens"][:, 0] == task.source_dictionary.index("<CLS>")).all()
        assert max(inputs[f"{side}_lengths"]) == 31


def test_shuffled_by_seed(pairs):
    orders = []
    for seed in (1, 1, 2):
        task, _ = setup(pairs, "--seed", seed)
        task.load_dataset("train")
        orders.append(task.dataset("train").ordered_indices().tolist())
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(SPLITS["train"]))


def test_longer_examples_are_cut_with_a_warning(pairs):
    task, cfg = setup(pairs, "--max-positions", "20", "--no-shuffle")
    with logged("fairseq_csp.tasks.lra_text") as lines:
        task.load_dataset("train")
    assert any("are longer than --max-positions 20 and are cut to it" in line for line in lines)
    rows, dataset = samples(task)
    batch = dataset.collater(rows)
    for side in ("src", "src1"):
        assert batch["net_input"][f"{side}_tokens"].size(1) == 20
        assert max(batch["net_input"][f"{side}_lengths"]) == 20
    assert task.build_model(cfg.model)(**batch["net_input"]).isfinite().all()


def test_every_example_is_kept(pairs):
    """fairseq's default multiple of 8 would leave out what fills no such batch."""
    task, _ = setup(pairs)
    task.load_dataset("train")
    itr = task.get_batch_iterator(
        task.dataset("train"), max_sentences=9, required_batch_size_multiple=8
    )
    batches = list(itr.next_epoch_itr(shuffle=False))
    assert [batch["nsentences"] for batch in batches] == [9, 3]


def test_one_loader_process_serves_all_epochs(pairs):
    """fairseq 0.12.2 would start another one at each epoch, and keep the earlier ones."""
    task, _ = setup(pairs)
    task.load_dataset("train")
    before = len(multiprocessing.active_children())
    for epoch in (1, 2, 3):
        itr = task.get_batch_iterator(
            task.dataset("train"), max_sentences=4, num_workers=1, epoch=epoch
        )
        assert len(list(itr.next_epoch_itr())) == 3
        assert len(multiprocessing.active_children()) == before + 1


def test_batches_by_tokens(pairs):
    task, _ = setup(pairs)
    task.load_dataset("train")
    itr = task.get_batch_iterator(task.dataset("train"), max_tokens=90)
    batches = list(itr.next_epoch_itr(shuffle=False))
    assert sum(batch["nsentences"] for batch in batches) == SPLITS["train"]
    for batch in batches:
        both = (batch["net_input"][name] for name in ("src_lengths", "src1_lengths"))
        assert batch["nsentences"] * max(map(sum, zip(*both, strict=True))) <= 90


def test_one_document_with_the_architecture_of_two(tmp_path):
    data = write_text(tmp_path / "data")
    task, cfg = setup(data)
    assert task.build_model(cfg.model).classifier[0][0].in_features == 8


def test_model_of_flags_in_a_namespace(pairs):
    task, _ = setup(pairs)
    flags = argparse.Namespace(arch="mega_lra_aan", encoder_embed_dim=8, encoder_layers=1)
    model = models.build_model(flags, task)
    assert model.classifier[0][0].in_features == 16


def test_images_have_another_architecture(pairs):
    task, cfg = setup(pairs, arch="mega_lra_pf32")
    with pytest.raises(UserError, match="--input-type is image, but the task's input is text"):
        task.build_model(cfg.model)


@pytest.mark.parametrize("norm", ["batchnorm", "syncbatchnorm"])
@pytest.mark.parametrize("family", ["mega", "flash"])
def test_batch_norm_is_refused(family, norm, pairs):
    task, cfg = setup(pairs, "--norm-type", norm, arch=f"{family}_lra_aan")
    with pytest.raises(UserError, match=f"--norm-type {norm} would take padding"):
        task.build_model(cfg.model)


def test_batch_norm_is_ignored_where_there_is_none(pairs):
    task, cfg = setup(pairs, "--norm-type", "batchnorm", arch="lstm_lra_aan")
    assert isinstance(task.build_model(cfg.model), LRAModel)


def test_more_classes_than_the_model_has(tmp_path):
    data = write_text(tmp_path / "data", classes=3)
    task, cfg = setup(data)
    with pytest.raises(UserError, match="--sentence-class-num is 2, but .* has 3 classes"):
        task.build_model(cfg.model)


def test_a_label_that_is_no_class(tmp_path):
    data = write_text(tmp_path / "data")
    # the names of the classes are lost, their numbers stay
    (data / "label-bin" / "dict.txt").write_text("only 1\n")
    with pytest.raises(UserError, match=r"example 1 of split train has class 1, but .* 0 to 0"):
        task, _ = setup(data, "--sentence-class-num", "1")
        task.load_dataset("train")


def test_sides_of_different_numbers(tmp_path):
    data = write_text(tmp_path / "data", documents=2)
    other = write_text(tmp_path / "other", splits={"train": 7})
    for suffix in ("bin", "idx"):
        (other / "src-bin" / f"train.{suffix}").rename(data / "src1-bin" / f"train.{suffix}")
    task, _ = setup(data)
    with pytest.raises(UserError, match="12 first documents and 7 second ones"):
        task.load_dataset("train")


def test_labels_of_another_number(tmp_path):
    data = write_text(tmp_path / "data")
    other = write_text(tmp_path / "other", splits={"train": 7})
    for suffix in ("bin", "idx"):
        (other / "label-bin" / f"train.{suffix}").rename(data / "label-bin" / f"train.{suffix}")
    task, _ = setup(data)
    with pytest.raises(UserError, match="split train has 12 examples and 7 labels"):
        task.load_dataset("train")


def test_missing_data(tmp_path, pairs):
    with pytest.raises(UserError, match="is not there: is .* the prepared data of a text task"):
        setup(tmp_path)
    task, _ = setup(pairs)
    with pytest.raises(UserError, match="has no split named nonsense"):
        task.load_dataset("nonsense")


def batches_of(task, split, size):
    task.load_dataset(split)
    dataset = task.dataset(split)
    iterator = task.get_batch_iterator(dataset, max_sentences=size, seed=1)
    return [list(batch) for batch in iterator.frozen_batches], dataset


def test_batches_by_length(tmp_path):
    splits = {"train": 40, "valid": 9, "test": 3}
    data = write_text(tmp_path / "data", longest=9, splits=splits)
    found = []
    for flags in ((), ("--batch-by-length",), ("--batch-by-length", "--seed", "2")):
        task, _ = setup(data, *flags)
        batches, dataset = batches_of(task, "train", 4)
        assert sorted(sum(batches, [])) == list(range(splits["train"]))
        ranges = sorted(
            (dataset.sizes[0][rows].min(), dataset.sizes[0][rows].max()) for rows in batches
        )
        apart = all(one[1] <= other[0] for one, other in itertools.pairwise(ranges))
        assert apart is bool(flags)
        found.append((batches, batches_of(task, "valid", 4)[0]))
    plain, by_length, by_other_seed = found
    # valid stays as it is, and the seed chooses among equal lengths
    assert by_length[1] == plain[1]
    assert by_length[0] != by_other_seed[0]


def test_batches_in_two_orders_are_refused(pairs):
    with pytest.raises(UserError, match="--batch-by-length does not go with --no-shuffle"):
        setup(pairs, "--batch-by-length", "--no-shuffle")
