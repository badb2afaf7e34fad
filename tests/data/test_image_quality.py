"""What brightness and sharpness measure, and which values are outliers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from pharmclf.data.image_quality import measure_brightness, measure_sharpness, outlier_scores


def checkerboard(side: int, field: int, low: int = 40, high: int = 200) -> np.ndarray:
    """(side, side, 3) uint8: fields of two greys."""
    places = np.arange(side) // field
    grey = np.where((places[:, None] + places) % 2, high, low).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize(("level", "brightness"), [(0, 0.0), (51, 0.2), (255, 1.0)])
def test_a_grey_image_is_as_bright_as_its_level_and_has_no_edge(level: int, brightness: float):
    image = np.full((30, 40, 3), level, np.uint8)
    assert measure_brightness(image) == pytest.approx(brightness, abs=1e-6)
    assert measure_sharpness(image) == 0


def test_green_is_brighter_than_blue():
    green, blue = np.zeros((2, 8, 8, 3), np.uint8)
    green[..., 1] = blue[..., 2] = 255
    assert measure_brightness(green) > 4 * measure_brightness(blue) > 0


def test_sharpness_falls_with_every_blur():
    image = Image.fromarray(checkerboard(300, 30))
    blurred = [np.asarray(image.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 2, 4, 8)]
    values = [measure_sharpness(each) for each in blurred]
    assert values == sorted(set(values), reverse=True)
    assert values[-1] < values[0] / 4


def test_sharpness_depends_neither_on_contrast_nor_on_size():
    strong, weak, large = checkerboard(256, 32), checkerboard(256, 32, 100, 140), checkerboard(1024, 128)
    assert measure_sharpness(weak) == pytest.approx(measure_sharpness(strong), rel=0.02)
    assert measure_sharpness(large) == pytest.approx(measure_sharpness(strong), rel=0.15)


def test_an_image_of_one_row_is_measured():
    assert measure_sharpness(np.random.default_rng(0).integers(0, 255, (1, 500, 3), dtype=np.uint8)) >= 0


def test_a_value_far_from_the_others_is_an_outlier_and_nearly_equal_values_are_none():
    scores = outlier_scores([*np.linspace(0.4, 0.6, 50), 0.05, 0.99], 0.02)
    assert (np.abs(scores) > 1).nonzero()[0].tolist() == [50, 51]
    assert scores[50] < -1
    assert np.abs(outlier_scores([0.5] * 20 + [0.51], 0.02)).max() < 1
    assert len(outlier_scores([], 0.02)) == 0


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_at_most_half_of_the_values_are_outliers(values: list[float]):
    assert (np.abs(outlier_scores(values, 1e-9)) > 1).sum() <= len(values) / 2
