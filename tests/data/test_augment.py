"""Augmentation: which transform a row gets, and what it does to the pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharmclf.config import AugmentConfig
from pharmclf.data import augment
from pharmclf.data.augment import (
    apply_transforms,
    augment_images,
    draw_augmentations,
    identity_transforms,
    projective_transforms,
)

NONE = AugmentConfig(rotation_deg=0, shift=0, shear=0, zoom=0, horizontal_flip=False)
PIXELS = {"brightness": 0.3, "contrast": 0.3, "color": 0.2, "blur": 0.03, "noise": 20.0, "erase": 0.3}
IDENTITY = [1, 0, 0, 0, 1, 0, 0, 0]
RANGES = st.builds(
    AugmentConfig,
    rotation_deg=st.floats(0, 180),
    shift=st.floats(0, 1),
    shear=st.floats(0, 1),
    zoom=st.floats(0, 0.9),
    horizontal_flip=st.booleans(),
    vertical_flip=st.booleans(),
)


def _drawn(monkeypatch: pytest.MonkeyPatch, **draws: float) -> None:
    """Let every row draw the middle of each range but for those given, which are shares of the range from 0 to 1."""
    names = ["angle", "shift_x", "shift_y", "shear", "zoom_x", "zoom_y", "flip_x", "flip_y"]
    values = np.array([draws.get(name, 0.5) for name in names])
    monkeypatch.setattr(augment, "uniforms", lambda _seed, _view, rows, _count: np.tile(values, (len(rows), 1)))


@settings(deadline=None, max_examples=50)
@given(RANGES, st.lists(st.integers(-1, 10_000), min_size=1, max_size=20), st.integers(0, 99), st.integers(0, 99))
def test_a_transform_depends_on_seed_view_and_row_alone(config: AugmentConfig, rows: list[int], seed: int, view: int):
    """The same row gets the same picture in any batch and at any place in it, hence on any worker."""
    found = projective_transforms(config, 32, seed, view, np.array(rows))
    assert found.shape == (len(rows), 8)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(projective_transforms(config, 32, seed, view, np.array(rows[::-1]))[::-1], found)
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(projective_transforms(config, 32, seed, view, np.array([row]))[0], found[place])


def test_other_seeds_views_and_rows_get_other_transforms():
    """No two of them share a picture."""
    cases = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    found = [projective_transforms(AugmentConfig(), 32, seed, view, np.array([row])) for seed, view, row in cases]
    assert len({transform.tobytes() for transform in found}) == len(cases)


def test_ranges_of_zero_change_nothing():
    """Without rotation, shift, shear, zoom and flips the transform is the identity, to the bit."""
    found = projective_transforms(NONE, 224, 0, 0, np.arange(50))
    np.testing.assert_array_equal(found, np.tile(np.array(IDENTITY, np.float32), (50, 1)))
    np.testing.assert_array_equal(identity_transforms(50), found)


@pytest.mark.parametrize("side", [4, 5, 224])
def test_a_flip_is_exact_and_half_of_the_rows_are_flipped(side: int):
    """x becomes S - 1 - x and y stays, or the other way round; 50 % of 10,000 rows within 2 %."""
    x_flips = projective_transforms(replace(NONE, horizontal_flip=True), side, 0, 0, np.arange(10_000))
    y_flips = projective_transforms(replace(NONE, vertical_flip=True), side, 0, 0, np.arange(10_000))
    for found, flipped in ((x_flips, [-1, 0, side - 1, 0, 1, 0, 0, 0]), (y_flips, [1, 0, 0, 0, -1, side - 1, 0, 0])):
        is_flipped = (found == np.array(flipped, np.float32)).all(axis=1)
        is_same = (found == np.array(IDENTITY, np.float32)).all(axis=1)
        assert (is_flipped | is_same).all()
        assert is_flipped.mean() == pytest.approx(0.5, abs=0.02)
    assert (x_flips[:, 0] < 0).tolist() != (y_flips[:, 4] < 0).tolist()


@settings(deadline=None, max_examples=50)
@given(RANGES, st.integers(0, 1000))
def test_transforms_stay_within_their_ranges(config: AugmentConfig, seed: int):
    """The centre moves by the shift at most, and the area changes by the zooms alone: rotation and shear keep it."""
    side = 100
    found = projective_transforms(config, side, seed, 0, np.arange(20)).astype(np.float64)
    centre = (side - 1) / 2
    for row in (found[:, 0:3], found[:, 3:6]):
        moved = (row[:, 0] + row[:, 1]) * centre + row[:, 2] - centre
        assert np.abs(moved).max() <= config.shift * side + 1e-3
    area = found[:, 0] * found[:, 4] - found[:, 1] * found[:, 3]  # negative where the picture is mirrored
    assert np.abs(area).min() >= (1 - config.zoom) ** 2 - 1e-4
    assert np.abs(area).max() <= (1 + config.zoom) ** 2 + 1e-4
    if not (config.horizontal_flip or config.vertical_flip):
        assert area.min() > 0


@pytest.mark.parametrize(
    ("range_", "draws", "expected"),
    [
        ({"rotation_deg": 30}, {"angle": 1}, [np.sqrt(0.75), -0.5, 0.5, np.sqrt(0.75)]),
        ({"rotation_deg": 30}, {"angle": 0}, [np.sqrt(0.75), 0.5, -0.5, np.sqrt(0.75)]),
        ({"shear": 0.3}, {"shear": 1}, [1, 0.3, 0, 1]),
        ({"zoom": 0.4}, {"zoom_x": 1}, [1.4, 0, 0, 1]),
        ({"zoom": 0.4}, {"zoom_y": 0}, [1, 0, 0, 0.6]),
    ],
)
def test_each_draw_has_its_own_effect(
    monkeypatch: pytest.MonkeyPatch, range_: dict[str, float], draws: dict[str, float], expected: list[float]
):
    """The ends of each range give the matrix that the word means, about a centre that stays."""
    _drawn(monkeypatch, **draws)
    found = projective_transforms(replace(NONE, **range_), 11, 0, 0, np.arange(1))[0]
    matrix = found[[0, 1, 3, 4]].reshape(2, 2)
    np.testing.assert_allclose(matrix.ravel(), expected, atol=1e-6)
    np.testing.assert_allclose(matrix @ [5, 5] + found[[2, 5]], [5, 5], atol=1e-5)


def _apply(images: np.ndarray, transforms: np.ndarray, fill: str = "constant") -> np.ndarray:
    import tensorflow as tf

    return np.asarray(apply_transforms(tf.constant(images), tf.constant(transforms), fill))


def _images(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (count, side, side, 3)).astype(np.float32)


@pytest.mark.tf
@pytest.mark.parametrize("fill", ["nearest", "reflect", "constant"])
def test_the_identity_moves_no_pixel(fill: str):
    """Every picture comes out as it went in, to the bit, whatever stands beyond its edge."""
    images = _images(3, 7)
    np.testing.assert_array_equal(_apply(images, identity_transforms(3), fill), images)


@pytest.mark.tf
@pytest.mark.parametrize("side", [4, 5])
def test_a_flip_mirrors_every_pixel(monkeypatch: pytest.MonkeyPatch, side: int):
    """Left-right and top-bottom, to the bit, also for sides that are even."""
    images = _images(2, side)
    _drawn(monkeypatch, flip_x=0.0, flip_y=0.0)
    for settings_, axis in (({"horizontal_flip": True}, 2), ({"vertical_flip": True}, 1)):
        transforms = projective_transforms(replace(NONE, **settings_), side, 0, 0, np.arange(2))
        np.testing.assert_array_equal(_apply(images, transforms), np.flip(images, axis))


@pytest.mark.tf
@pytest.mark.parametrize("side", [4, 5])
def test_a_quarter_turn_about_the_centre_is_exact(monkeypatch: pytest.MonkeyPatch, side: int):
    """±90 degrees put every pixel in the place of another, and nothing beyond the edge comes in."""
    images = _images(2, side)
    for draw, turns in ((1.0, 1), (0.0, -1)):
        _drawn(monkeypatch, angle=draw)
        transforms = projective_transforms(replace(NONE, rotation_deg=90), side, 0, 0, np.arange(2))
        np.testing.assert_allclose(_apply(images, transforms), np.rot90(images, turns, axes=(1, 2)), atol=1e-3)


@pytest.mark.tf
@pytest.mark.parametrize(
    ("fill", "expected"), [("nearest", [3, 3, 3]), ("reflect", [3, 3, 2]), ("constant", [3, 0, 0])]
)
def test_a_shift_shows_the_fill_beyond_the_edge(monkeypatch: pytest.MonkeyPatch, fill: str, expected: list[int]):
    """Half a side to the left on a picture of columns 0 1 2 3: 2 and 3, then what the fill says."""
    images = np.tile(np.arange(4, dtype=np.float32)[None, None, :, None], (1, 4, 1, 3))
    _drawn(monkeypatch, shift_x=1.0)
    transforms = projective_transforms(replace(NONE, shift=0.5), 4, 0, 0, np.arange(1))
    assert _apply(images, transforms, fill)[0, 0, :, 0].tolist() == [2, *expected]


@pytest.mark.tf
def test_batches_of_any_size_move_alike():
    """A picture alone and among others comes out the same, to the bit, and keeps its type."""
    images = _images(6, 16)
    transforms = projective_transforms(AugmentConfig(), 16, 0, 0, np.arange(6))
    together = _apply(images, transforms, "reflect")
    for place in range(6):
        alone: Any = _apply(images[place : place + 1], transforms[place : place + 1], "reflect")
        np.testing.assert_array_equal(alone[0], together[place])
    assert _apply(images.astype(np.float16), transforms).dtype == np.float16


def test_changes_of_pixels_leave_the_moves_as_they_were():
    """The first eight columns are those of the same settings without light, blur, noise and hidden parts."""
    rows = np.arange(20)
    found = draw_augmentations(AugmentConfig(**PIXELS), 32, 1, 2, rows)
    assert found.shape == (20, 20)
    np.testing.assert_array_equal(found[:, :8], draw_augmentations(AugmentConfig(), 32, 1, 2, rows))


def test_changes_of_pixels_stay_within_their_ranges():
    found = draw_augmentations(replace(NONE, **PIXELS), 100, 0, 0, np.arange(4000)).T
    gains, offset, blur, noise, corners = found[8:11], found[11], found[12], found[13], found[16:20]
    assert 0.7 * 0.7 * 0.8 <= gains.min() < 0.45
    assert 1.9 < gains.max() <= 1.3 * 1.3 * 1.2
    assert np.abs(offset).max() <= 127.5 * 1.3 * 0.3
    assert (blur >= 0).all()
    assert (blur <= 3.0).all()
    assert (noise >= 0).all()
    assert (noise <= 20.0).all()
    for changed in (blur > 0, corners[2] > corners[0]):  # every second image
        assert 0.45 < changed.mean() < 0.55
    assert (corners >= 0).all()
    assert (corners <= 100).all()
    areas = (corners[2] - corners[0]) * (corners[3] - corners[1])
    assert 0.25 * 100**2 < areas.max() <= 0.31 * 100**2


def _augment(images: np.ndarray, rows: np.ndarray | None = None, **settings_: float) -> np.ndarray:
    import tensorflow as tf

    config, side = replace(NONE, **settings_), images.shape[1]
    drawn = draw_augmentations(config, side, 0, 0, np.arange(len(images)) if rows is None else rows)
    return np.asarray(augment_images(tf.constant(images), tf.constant(drawn), config, 0))


@pytest.mark.tf
def test_light_changes_levels_and_no_places():
    """Grey of one level: brightness and contrast keep it grey, coloured light does not; dark stays dark."""
    grey = np.full((60, 8, 8, 3), 60, np.float32)
    bright, contrast, colored = (_augment(grey, **{name: 0.4}) for name in ("brightness", "contrast", "color"))
    for found in (bright, contrast, colored):
        np.testing.assert_allclose(found, np.broadcast_to(found[:, :1, :1], found.shape), atol=1e-4)
    for found in (bright, contrast):
        np.testing.assert_allclose(found[..., 0], found[..., 2], atol=1e-4)
    assert 36 <= bright.min() < 40
    assert 80 < bright.max() <= 84
    assert 33 <= contrast.min() < 36
    assert 84 < contrast.max() <= 87
    assert np.ptp(colored[:, 0, 0], axis=-1).max() > 20
    np.testing.assert_array_equal(_augment(0 * grey, brightness=0.4, color=0.4), 0 * grey)


@pytest.mark.tf
def test_blur_is_that_of_scipy_for_the_deviation_of_each_image():
    from scipy.ndimage import gaussian_filter

    images = _images(8, 40)
    deviations = draw_augmentations(replace(NONE, blur=0.05), 40, 0, 0, np.arange(8))[:, 12]
    assert (deviations == 0).any()
    assert (deviations > 1).any()
    for found, image, deviation in zip(_augment(images, blur=0.05), images, deviations, strict=True):
        expected = gaussian_filter(image, (deviation, deviation, 0), radius=6, mode="reflect") if deviation else image
        np.testing.assert_allclose(found, expected, atol=0.02)


@pytest.mark.tf
def test_noise_has_the_drawn_deviation_and_differs_from_image_to_image():
    grey = np.full((6, 64, 64, 3), 127.5, np.float32)
    deviations = draw_augmentations(replace(NONE, noise=30), 64, 0, 0, np.arange(6))[:, 13]
    found = _augment(grey, noise=30) - grey
    np.testing.assert_allclose(found.std(axis=(1, 2, 3)), deviations, rtol=0.03)
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), 0, atol=1)
    assert np.abs(np.corrcoef(found.reshape(6, -1)) - np.eye(6)).max() < 0.05


@pytest.mark.tf
def test_a_hidden_part_is_grey_and_the_rest_stays():
    images = _images(20, 50)
    corners = draw_augmentations(replace(NONE, erase=0.4), 50, 0, 0, np.arange(20))[:, 16:].astype(int)
    for found, image, (left, top, right, bottom) in zip(_augment(images, erase=0.4), images, corners, strict=True):
        expected = image.copy()
        expected[top:bottom, left:right] = 127.5
        np.testing.assert_array_equal(found, expected)


@pytest.mark.tf
def test_batches_of_any_size_change_alike():
    """All changes at once, alone and among others, within the levels that there are."""
    images = _images(6, 32)
    together = _augment(images, **PIXELS)
    assert together.min() == 0
    assert together.max() == 255
    for row in range(6):
        alone = _augment(images[row : row + 1], np.array([row]), **PIXELS)
        np.testing.assert_allclose(alone[0], together[row], atol=1e-3)
