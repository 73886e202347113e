"""One release of the Long Range Arena with all four of its sets."""

import json
import tarfile

import pytest

from preprocess.__main__ import main
from tests.preprocess.test_aan import check as check_aan
from tests.preprocess.test_aan import write as write_aan
from tests.preprocess.test_listops import EXPRESSIONS, check_release
from tests.preprocess.test_pathfinder import check as check_images
from tests.preprocess.test_pathfinder import write_release


@pytest.fixture
def release(tmp_path):
    root = tmp_path / "lra_release" / "lra_release"
    (root / "listops-1000").mkdir(parents=True)
    text = "Source\tTarget\n" + "".join("\t".join(pair) + "\n" for pair in EXPRESSIONS)
    for name in ("train", "val", "test"):
        (root / "listops-1000" / f"basic_{name}.tsv").write_text(text)
    write_aan(root / "tsv_data")
    write_release(root.parent, "pathfinder128", 128, seed=1)
    images = {
        "pathfinder": write_release(root, "pathfinder32", 32, seed=2),
        "path-x": write_release(root, "pathfinder128", 128, seed=3),
    }
    archive = tmp_path / "lra_release.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "lra_release", "lra_release")
    return archive, images


def prepare_all(release, out, *options):
    arguments = ["all", "--raw", str(release), "--out", str(out), "--workers", "1", *options]
    return main(arguments)


def test_all_prepares_what_the_release_holds(release, tmp_path, capsys):
    archive, images = release
    out = tmp_path / "data"
    assert prepare_all(archive, out, "--limit", "100") == 0
    assert sorted(path.name for path in out.iterdir()) == ["aan", "listops", "path-x", "pathfinder"]
    check_aan(out / "aan")
    check_release(out / "listops")
    for name, content in images.items():
        check_images(out / name, content)
    # a second time it leaves all as it is
    before = json.loads((out / "aan" / "summary.json").read_text())
    assert prepare_all(archive, out) == 0
    assert "left as it is" in capsys.readouterr().err
    assert json.loads((out / "aan" / "summary.json").read_text()) == before


def test_a_partial_release_gives_its_part(release, tmp_path, capsys):
    _, images = release
    folder = tmp_path / "lra_release" / "lra_release" / "pathfinder32"
    assert prepare_all(folder, tmp_path / "data", "--limit", "100") == 0
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["pathfinder"]
    check_images(tmp_path / "data" / "pathfinder", images["pathfinder"])
    assert "aan: " in capsys.readouterr().err


def test_nothing_found_is_an_error(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert prepare_all(tmp_path / "empty", tmp_path / "data") == 1
    assert "holds none of listops, aan, pathfinder, path-x" in capsys.readouterr().err
