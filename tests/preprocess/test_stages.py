"""The data of every stage of the laptop's recipes, small."""

import pytest

from fairseq_csp.recipes.lra import LAPTOP, stages
from fairseq_csp.recipes.recipe import LAST_DATA
from tests.helpers.processed import files


def imdb(directory):
    for i in range(40):
        review = directory / ("train" if i < 20 else "test") / ("neg", "pos")[i % 2] / f"{i}_1.txt"
        review.parent.mkdir(parents=True, exist_ok=True)
        review.write_text(f"{i} words, then more: " + "a" * 600 + ("z" if i % 2 else "y"))
    return directory


@pytest.mark.parametrize("dataset", LAPTOP)
def test_every_stage_can_be_prepared_with_the_dictionaries_of_the_last(dataset, prepare, tmp_path):
    small = ["--limit", 20]
    if dataset == "imdb-4000":
        small += ["--raw", imdb(tmp_path / "raw")]
    elif dataset == "cifar10":
        small = ["--demo"]
    found = stages("mega", dataset, "laptop")
    last = tmp_path / "last"
    for stage in (found[-1], *found[:-1]):
        preparation = [part.replace(LAST_DATA, str(last)) for part in stage.preparation]
        out = last if stage is found[-1] else tmp_path / stage.name
        prepare(dataset, *preparation, *small, out=out)
        if str(last) in preparation:
            assert files(out)["src-bin/dict.txt"] == files(last)["src-bin/dict.txt"]
