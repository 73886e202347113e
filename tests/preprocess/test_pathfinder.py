import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from fairseq_csp.data.pixels import load_labels, load_pixels
from preprocess.path_x import PATH_X
from preprocess.pathfinder import PATHFINDER
from preprocess.pathfinder_generator import design, draw, generate
from tests.helpers.processed import files

SETTINGS = [
    pytest.param(PATHFINDER.settings, id="32"),
    pytest.param(PATH_X.settings, id="128"),
    pytest.param(PATH_X.demo, id="64"),
]


def dense(paddle):
    return np.linspace(paddle[0], paddle[1], 41)


def distance(one, other):
    return np.abs(np.subtract.outer(dense(one), dense(other))).min()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("label", [0, 1])
def test_geometry_is_as_specified(settings, label):
    for number in range(6):
        drawing = design(np.random.default_rng((label, number)), settings, label)
        assert [len(contour) for contour in drawing.contours] == [settings.paddles] * 2
        assert [len(contour) for contour in drawing.distractors] == (
            [settings.distractor_paddles] * settings.distractors
        )
        starts = [contour[0, 0] for contour in drawing.contours]
        ends = [contour[-1, 1] for contour in drawing.contours]
        assert abs(starts[0] - starts[1]) == pytest.approx(settings.start_distance)

        # the discs: one at a start, the other at the end of the same contour exactly for label 1
        origin = starts.index(drawing.markers[0])
        assert drawing.markers[1] == ends[origin if label else 1 - origin]
        assert abs(drawing.markers[0] - drawing.markers[1]) > 2 * settings.marker_radius

        paddles = []
        for which, contour in enumerate((*drawing.contours, *drawing.distractors)):
            lines = contour[:, 1] - contour[:, 0]
            assert np.abs(lines) == pytest.approx(settings.paddle_length)
            turns = np.angle(lines[1:] / lines[:-1])
            assert np.abs(turns).max() <= settings.continuity
            gaps = np.abs(contour[1:, 0] - contour[:-1, 1])
            assert gaps.max() <= settings.margin + 1e-9
            assert gaps.min() > 0.8 * settings.margin
            paddles += [(which, place, paddle) for place, paddle in enumerate(contour)]
            inside = np.concatenate([contour.real, contour.imag])
            assert settings.padding <= inside.min()
            assert inside.max() <= settings.side - settings.padding
        for i, (contour, place, paddle) in enumerate(paddles):
            for other_contour, other_place, other in paddles[:i]:
                if (contour, place) != (other_contour, other_place + 1):
                    assert distance(paddle, other) >= settings.clearance - 0.05
        # a disc touches nothing but the paddle that it marks and that one's neighbour
        for marker in drawing.markers:
            marked = next((c, k) for c, k, paddle in paddles if marker in paddle)
            for contour, place, paddle in paddles:
                if contour != marked[0] or abs(place - marked[1]) > 1:
                    edge = np.abs(dense(paddle) - marker).min() - settings.thickness / 2
                    assert edge >= settings.marker_radius + settings.margin - 0.05


@pytest.mark.parametrize("settings", SETTINGS)
def test_drawn_discs_are_where_they_should_be(settings):
    drawing = design(np.random.default_rng(3), settings, 1)
    image = draw(drawing, settings)
    assert image.shape == (settings.side, settings.side) and image.dtype == np.uint8
    assert max(image[0].max(), image[:, 0].max(), image[-1].max(), image[:, -1].max()) < 40
    for marker in drawing.markers:
        assert image[int(marker.imag), int(marker.real)] > 240
    middle = drawing.contours[0][4].mean()
    assert image[int(middle.imag), int(middle.real)] > 60
    assert (image > 0).mean() < 0.5


def test_labels_differ_in_nothing_but_the_joined_discs():
    images, labels = (
        np.concatenate(parts)
        for parts in zip(*generate(PATH_X.settings, seed=0, count=256, workers=1), strict=True)
    )
    assert labels.sum() == 128
    brightness = images.mean(axis=1)
    means = [brightness[labels == label].mean() for label in (0, 1)]
    error = brightness.std() * np.sqrt(2 / 128)
    assert abs(means[0] - means[1]) < 4 * error


@pytest.mark.parametrize("name", ["pathfinder", "path-x"])
def test_same_seed_same_bytes_on_any_number_of_workers(prepare, tmp_path, name):
    options = ("--generate", "--limit", 12)  # of each split; more than a chunk in all
    one = files(prepare(name, *options, out=tmp_path / "one"))
    two = files(prepare(name, *options, out=tmp_path / "two", workers=2))
    other = files(prepare(name, *options, "--seed", 1, out=tmp_path / "other"))
    assert one == two
    assert one["input/train.npy"] != other["input/train.npy"]
    summary = json.loads(one["summary.json"])
    assert summary["limited"] is True
    assert len({tuple(split["classes"].values()) for split in summary["splits"].values()}) == 1


def test_levels_differ_in_the_contours(prepare, tmp_path):
    brightness = []
    for level, paddles in (("easy", 6), ("intermediate", 9), ("hard", 14)):
        options = ("--generate", "--level", level, "--limit", 60)
        out = prepare("pathfinder", *options, out=tmp_path / level)
        summary = json.loads((out / "summary.json").read_text())
        assert summary["options"]["paddles"] == paddles
        brightness.append(load_pixels(out, "train").mean())
    assert brightness == sorted(brightness)


def test_demo_is_learnable(prepare):
    out = prepare("path-x", "--demo", "--limit", 60)
    brightness = load_pixels(out, "train").mean(axis=1)
    labels = load_labels(out, "train")
    threshold = np.median(brightness)
    assert ((brightness > threshold) == labels).mean() > 0.9


def test_preview_shows_two_hundred_images(tmp_path, capsys, fail):
    from preprocess.__main__ import main

    assert main(["path-x", "--preview", str(tmp_path / "sheet.png"), "--workers", "1"]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (20 * 130, 10 * 130)
    assert list(tmp_path.iterdir()) == [tmp_path / "sheet.png"]


# --- the release: text metadata, K as a number (2 before 10), images in any order, extra levels


def write_release(root, folder, side, seed, name="curv_contour_length_14"):
    """Write one level with 3 folders of 10 images; return (pixels, label) in metadata order."""
    rng = np.random.default_rng(seed)
    level = root / folder / name
    (level / "metadata").mkdir(parents=True)
    content = []
    for number in (2, 1, 10):
        (level / "imgs" / str(number)).mkdir(parents=True)
        lines = []
        for i in rng.permutation(10).tolist():
            pixels = rng.integers(0, 256, (side, side), dtype=np.uint8)
            label = int(rng.integers(0, 2))
            name = f"sample_{i}.png"
            Image.fromarray(pixels).save(level / "imgs" / str(number) / name)
            lines.append(f"imgs/{number} {name} {i} {label} 1.0 14 4 2 0.5 1 1")
            content.append((number, pixels.ravel(), label))
        (level / "metadata" / f"{number}.npy").write_text("\n".join(lines) + "\n")
    easier = root / folder / "curv_contour_length_9" / "imgs" / "0"
    easier.mkdir(parents=True, exist_ok=True)
    (easier / "sample_0.png").write_bytes(b"not to be read")
    content.sort(key=lambda item: item[0])
    return [(pixels, label) for _, pixels, label in content]


@pytest.fixture
def release(tmp_path):
    """The release with both pathfinder128 folders, and what the right ones hold."""
    outer = tmp_path / "download" / "lra_release"
    right = outer / "lra_release"
    write_release(outer, "pathfinder128", 128, seed=1)
    return tmp_path / "download", {
        "path-x": write_release(right, "pathfinder128", 128, seed=2),
        "pathfinder": write_release(right, "pathfinder32", 32, seed=3),
    }


def check(out, content):
    order = np.random.default_rng(42).permutation(30)
    for split, numbers in (("train", order[:24]), ("valid", order[24:27]), ("test", order[27:])):
        expected = [content[number] for number in numbers]
        np.testing.assert_array_equal(load_pixels(out, split), [pixels for pixels, _ in expected])
        assert load_labels(out, split).tolist() == [label for _, label in expected]


@pytest.mark.parametrize("name", ["pathfinder", "path-x"])
@pytest.mark.parametrize("start", ["", "lra_release", "lra_release/lra_release"])
def test_release_directory(release, prepare, name, start):
    directory, content = release
    check(prepare(name, "--raw", directory / start, "--limit", 100), content[name])


def test_the_folder_itself_will_do(release, prepare):
    directory, content = release
    folder = directory / "lra_release" / "lra_release" / "pathfinder128"
    check(prepare("path-x", "--raw", folder, "--limit", 100), content["path-x"])


def test_other_levels_of_the_release(release, prepare, tmp_path):
    directory, _ = release
    content = write_release(directory, "pathfinder32", 32, seed=4, name="curv_baseline")
    out = prepare("pathfinder", "--raw", directory, "--level", "easy", "--limit", 100)
    check(out, content)
    assert json.loads((out / "summary.json").read_text())["options"]["level"] == "easy"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_release_archive_in_any_order(release, prepare, tmp_path, reverse, workers):
    directory, content = release
    archive = tmp_path / "lra_release.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(directory.rglob("*"), reverse=reverse):
            tar.add(path, path.relative_to(directory), recursive=False)
    out = prepare("path-x", "--raw", archive, "--limit", 100, workers=workers)
    check(out, content["path-x"])
    assert sorted(path.name for path in out.iterdir()) == ["input", "label", "summary.json"]


def test_counts_are_asserted(release, fail):
    assert "train has 24 examples, expected 160,000" in fail("path-x", "--raw", release[0])


def test_broken_releases_are_named(release, fail, tmp_path):
    directory, _ = release
    level = directory / "lra_release/lra_release/pathfinder32/curv_contour_length_14"
    image = level / "imgs" / "10" / "sample_3.png"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    assert str(image) in fail("pathfinder", "--raw", directory)
    image.unlink()
    assert "there is no image imgs/10/sample_3.png" in fail("pathfinder", "--raw", directory)
    Image.new("L", (31, 32)).save(image)
    assert "expected 32 x 32" in fail("pathfinder", "--raw", directory)
    image.write_bytes(content)
    (level / "metadata" / "1.npy").write_text("imgs/1 sample_0.png 0 2\n")
    message = fail("pathfinder", "--raw", directory)
    assert f"{level / 'metadata' / '1.npy'}, line 1" in message
    (tmp_path / "empty").mkdir()
    assert "pathfinder32" in fail("pathfinder", "--raw", tmp_path / "empty")


@pytest.mark.parametrize("name", ["pathfinder", "path-x"])
def test_an_image_that_is_there_twice_is_refused(release, fail, tmp_path, name):
    directory, _ = release
    archive = tmp_path / "lra_release.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(directory, "")
    folder = {"pathfinder": "pathfinder32", "path-x": "pathfinder128"}[name]
    image = f"lra_release/lra_release/{folder}/curv_contour_length_14/imgs/2/sample_3.png"
    with tarfile.open(archive, "a") as tar:
        tar.add(directory / image, image)
    assert f"holds {image} twice" in fail(name, "--raw", archive, "--limit", 100)


def test_metadata_that_lists_an_image_twice_is_refused(release, fail):
    directory, _ = release
    level = directory / "lra_release/lra_release/pathfinder32/curv_contour_length_14"
    metadata = level / "metadata" / "2.npy"
    first, *others = metadata.read_text().splitlines()
    metadata.write_text("\n".join([first, *others[:-1], first]))
    message = fail("pathfinder", "--raw", directory, "--limit", 100)
    assert f"{metadata}, line 10: {'/'.join(first.split()[:2])} is listed a second time" in message
    metadata.write_text("\n".join([first, *others]))
    (level / "metadata" / "02.npy").write_text("")
    message = fail("pathfinder", "--raw", directory, "--limit", 100)
    assert "metadata/2.npy and " in message and "only one can be meant" in message


def test_the_image_of_the_release_that_is_empty_is_left_out(prepare, fail, tmp_path, capsys):
    content = write_release(tmp_path, "pathfinder32", 32, seed=4, name="curv_baseline")
    level = tmp_path / "pathfinder32" / "curv_baseline"
    # folder 1 as 0, which is the first then as well, and one of its images as the empty one
    images, metadata = level / "imgs" / "0", level / "metadata" / "0.npy"
    (level / "imgs" / "1").rename(images)
    text = (level / "metadata" / "1.npy").read_text().replace("imgs/1 ", "imgs/0 ")
    (level / "metadata" / "1.npy").unlink()
    metadata.write_text(text.replace("sample_0.png", "sample_172.png"))
    (images / "sample_0.png").unlink()
    (images / "sample_172.png").write_bytes(b"")
    del content[next(i for i, line in enumerate(text.splitlines()) if "sample_0.png" in line)]
    options = ("--raw", tmp_path / "pathfinder32", "--level", "easy")
    out = prepare("pathfinder", *options, "--limit", 100)
    order = np.random.default_rng(42).permutation(29)
    np.testing.assert_array_equal(
        load_pixels(out, "train"), [content[number][0] for number in order[:23]]
    )
    summary = json.loads((out / "summary.json").read_text())
    assert summary["left_out"] == ["imgs/0/sample_172.png"]
    assert (
        "sample_172.png is empty, as is known of the release: left out" in capsys.readouterr().err
    )
    # a full set counts 199,999
    assert "train has 24 examples, expected 160,000" in fail("pathfinder", *options)
    (images / "sample_1.png").write_bytes(b"")
    assert "sample_1.png is not a readable PNG" in fail("pathfinder", *options)


def test_generator_options_do_not_go_with_raw(release, fail):
    assert "--generate" in fail("pathfinder", "--raw", release[0], "--generate")


def test_the_demo_has_no_level(fail):
    assert "leave --level out" in fail("pathfinder", "--demo", "--level", "easy")
