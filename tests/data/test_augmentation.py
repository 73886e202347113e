"""Random changes of images, against what they are by definition."""

import numpy as np
import pytest
from PIL import Image

from fairseq_csp.data.augmentation import (
    OPERATIONS,
    Augmentation,
    as_pil,
    centre_crop,
    padded_crop,
    rand_augment,
    resized_crop,
)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(1, 256, (8, 10, 3), dtype=np.uint8)


def test_a_crop_is_one_of_81_windows(image):
    """Each of them comes, about equally often."""
    framed = np.zeros((16, 18, 3), np.uint8)
    framed[4:12, 4:14] = image
    windows = {
        framed[top : top + 8, left : left + 10].tobytes(): (top, left)
        for top in range(9)
        for left in range(9)
    }
    counts = np.zeros((9, 9))
    for number in range(4050):
        counts[windows[padded_crop(image, np.random.default_rng(number)).tobytes()]] += 1
    # 50 each; beyond 5 deviations of a Poisson distribution
    assert counts.min() > 50 - 36 and counts.max() < 50 + 36


def test_half_of_the_images_are_flipped(image):
    augmentation = Augmentation("crop")
    whole = {padded_crop(image, np.random.default_rng(k)).tobytes() for k in range(300)}
    results = [augmentation(image, (8, 10), np.random.default_rng(k)) for k in range(300)]
    flipped = sum(result.tobytes() not in whole for result in results)
    assert 110 < flipped < 190


def test_none_changes_nothing(image):
    result = Augmentation("none")(image, (8, 10), np.random.default_rng(0))
    np.testing.assert_array_equal(result, image)


def ramp(height, width):
    """An image whose red grows from left to right and green from top to bottom."""
    pixels = np.zeros((height, width, 3))
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return as_pil(pixels.astype(np.uint8))


def test_a_resized_crop_is_a_part_of_the_image():
    """The colours at its edges tell where it was cut, and so its area and shape."""
    areas, ratios = [], []
    for number in range(400):
        part = resized_crop(ramp(60, 80), (32, 32), np.random.default_rng(number)).astype(float)
        width = (part[16, 31, 0] - part[16, 0, 0]) / 255 * 80 * 32 / 31
        height = (part[31, 16, 1] - part[0, 16, 1]) / 255 * 60 * 32 / 31
        areas.append(width * height / 4800)
        ratios.append(width / height)
    assert min(areas) > 0.06 and max(areas) < 1.05
    assert np.quantile(areas, 0.9) - np.quantile(areas, 0.1) > 0.5
    assert min(ratios) > 0.65 and max(ratios) < 1.5


def test_a_centre_crop_is_the_centre():
    part = centre_crop(ramp(100, 200), (28, 28), ratio=8 / 7).astype(float)
    # 7/8 of the height of 100, in the middle of the width
    assert part[14, 0, 0] / 255 * 200 == pytest.approx(100 - 43.75, abs=3)
    assert part[14, 27, 0] / 255 * 200 == pytest.approx(100 + 43.75, abs=3)
    assert part[0, 14, 1] / 255 * 100 == pytest.approx(6.25, abs=3)


def test_an_extreme_shape_is_cropped_at_its_centre():
    image = Image.new("RGB", (400, 1))
    assert resized_crop(image, (4, 4), np.random.default_rng(0)).shape == (4, 4, 3)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_operations_keep_shape_and_begin_at_the_image(name, channels):
    pixels = np.random.default_rng(1).integers(0, 255, (9, 7, channels), dtype=np.uint8)
    image = as_pil(pixels)
    for sign in (1, -1):
        strongest = np.asarray(OPERATIONS[name](image, 1.0, sign))
        assert strongest.shape == np.asarray(image).shape and strongest.dtype == np.uint8
        if name not in ("autocontrast", "equalize"):
            # these have no strength
            weakest = np.asarray(OPERATIONS[name](image, 0.0, sign))
            np.testing.assert_array_equal(weakest, np.asarray(image))
        if name not in ("identity", "autocontrast", "equalize") and (channels, name) != (
            1,
            "color",
        ):
            assert (strongest != np.asarray(image)).any()


def test_operations_do_what_they_are_called():
    image = ramp(80, 80)
    before = np.asarray(image).astype(int)

    def after(name, sign=1):
        return np.asarray(OPERATIONS[name](image, 1.0, sign)).astype(int)

    np.testing.assert_array_equal(after("solarize"), 255 - before)
    np.testing.assert_array_equal(after("posterize"), before & 0xF0)
    np.testing.assert_array_equal(after("translate-x")[:, :56], before[:, 24:])
    np.testing.assert_array_equal(after("translate-y", -1)[24:], before[:56])
    assert after("brightness").mean() > before.mean() > after("brightness", -1).mean()
    assert after("contrast").std() > before.std() > after("contrast", -1).std()
    # equalised, each level is as frequent as any other
    dark = as_pil((before // 4).astype(np.uint8))
    equalized = np.asarray(OPERATIONS["equalize"](dark, 1.0, 1))
    assert equalized[..., 0].max() == 255 and equalized[..., 0].mean() == pytest.approx(128, abs=8)
    stretched = np.asarray(OPERATIONS["autocontrast"](dark, 1.0, 1))
    assert stretched[..., 0].max() == 255 and stretched[..., 0].min() == 0
    # the middle row and column stay where a shear or a rotation turns the others
    assert (after("shear-x")[0] == before[0]).all() and (
        after("shear-y")[:, 0] == before[:, 0]
    ).all()
    assert (after("rotate") != after("rotate", -1)).any()


def test_rand_augment_draws_its_operations(image):
    results = {rand_augment(image, 2, 9, np.random.default_rng(k)).tobytes() for k in range(200)}
    assert len(results) > 100
    same = [rand_augment(image, 2, 9, np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(*same)
