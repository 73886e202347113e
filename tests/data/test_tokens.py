"""Sequences of symbols read back as fairseq reads them, and files that change meanwhile."""

import os
import pickle

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset

from fairseq_csp.data.tokens import load_dictionary, load_tokens
from fairseq_csp.errors import UserError
from tests.helpers.generated import write_text


@pytest.fixture
def prefix(tmp_path):
    return write_text(tmp_path / "text") / "src-bin" / "train"


def test_items_are_those_of_fairseq(prefix):
    ours = load_tokens(str(prefix), Dictionary.load(str(prefix.parent / "dict.txt")))
    theirs = MMapIndexedDataset(str(prefix))
    assert len(ours) == len(theirs) and ours.sizes.tolist() == theirs.sizes.tolist()
    for dataset in (ours, pickle.loads(pickle.dumps(ours))):
        for index in range(len(theirs)):
            assert dataset[index].dtype == torch.int64
            assert torch.equal(dataset[index], theirs[index])
            assert dataset.num_tokens(index) == dataset.size(index) == len(theirs[index])


def test_a_file_that_is_cut_short_while_it_is_in_use_is_told(prefix):
    dataset = load_tokens(str(prefix))
    data = prefix.with_suffix(".bin")
    os.truncate(data, data.stat().st_size - 1)
    assert len(dataset[0]) == dataset.sizes[0]
    with pytest.raises(UserError, match=r"train\.bin became shorter while it was in use"):
        dataset[len(dataset) - 1]


def test_a_pipe_is_told_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "dict.txt")
    with pytest.raises(UserError, match=r"dict\.txt is a pipe or a device"):
        load_dictionary(str(tmp_path / "dict.txt"))
