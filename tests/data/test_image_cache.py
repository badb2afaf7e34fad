"""Decoded images on the local disk: the pixels of decoding, whatever becomes of an entry."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pharmclf.config import ConfigError
from pharmclf.data import image_cache, ray_loader
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.data.image_cache import ImageCache, choose_image_cache
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest

SIZE = 32


def entries(cache: ImageCache) -> list[Path]:
    assert cache.folder is not None
    return sorted(cache.folder.glob("*/*"))


def load(images: ImageSet, cache: ImageCache | None = None, size: int = SIZE) -> np.ndarray:
    pixels, bad = ray_loader.load_images(images, size, cache)
    assert set(bad) == {""}
    return pixels


@pytest.fixture
def images(drawn_manifest: Manifest) -> ImageSet:
    return ImageSet.of(drawn_manifest).slice(0, 5)


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "images", 1e9)


def absent(images: ImageSet) -> ImageSet:
    """The same images, with files that are not there."""
    return ImageSet(
        ImageSet.of_paths([f"/absent/{n}" for n in range(len(images))]).paths, images.sha256, images.white_level
    )


def test_an_entry_has_the_pixels_of_decoding_and_serves_without_the_file(images: ImageSet, cache: ImageCache):
    """One entry for each image and size; other runs and places of the same content share it."""
    for size in (SIZE, 48):
        decoded = load(images, size=size)
        np.testing.assert_array_equal(load(images, cache, size), decoded)
        np.testing.assert_array_equal(load(absent(images), ImageCache(cache.folder, 1e9), size), decoded)
    assert len(entries(cache)) == 10


def test_a_part_of_an_image_has_entries_of_its_own(images: ImageSet, cache: ImageCache):
    """Products at other places are other pixels, though files and size are the same."""
    whole = load(images, cache)
    for left in (0.0, 0.25):
        part = replace(images, crops=np.tile(np.array([left, 0.5, 0.5], np.float32), (len(images), 1)))
        decoded = load(part)
        np.testing.assert_array_equal(load(part, cache), decoded)
        np.testing.assert_array_equal(load(part, cache), decoded)
        assert (decoded != whole).any()
    assert len(entries(cache)) == 15


def test_a_white_level_has_entries_of_its_own(images: ImageSet, cache: ImageCache):
    load(images, cache)
    other = ImageSet(images.paths, images.sha256, ImageSet.of_paths(images.paths, 4095).white_level)
    load(other, cache)
    assert len(entries(cache)) == 10


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "delete", "empty"])
def test_a_damaged_or_lost_entry_is_decoded_again(images: ImageSet, cache: ImageCache, damage: str):
    decoded = load(images, cache)
    first, second = entries(cache)[:2]
    content = first.read_bytes()
    if damage == "flip":
        first.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif damage == "cut":
        first.write_bytes(content[:-1])
    elif damage == "swap":
        first.write_bytes(second.read_bytes())
    elif damage == "empty":
        first.write_bytes(b"")
    else:
        first.unlink()
    np.testing.assert_array_equal(load(images, cache), decoded)
    assert first.read_bytes() == content


def test_an_image_without_a_sum_has_no_entry(images: ImageSet, cache: ImageCache):
    load(ImageSet.of_paths(images.paths), cache)
    assert entries(cache) == []


def test_what_was_used_longest_ago_goes_but_nothing_of_the_run_itself(images: ImageSet, tmp_path: Path):
    """To evict an entry that the run uses would only have it decoded again."""
    image = images.slice(0, 1)
    cache = ImageCache(tmp_path / "images", 256 * 2 * (32 + 34 * 34 * 3))  # two in each folder

    def sizes() -> list[int]:
        return sorted(int(path.name.split("-")[1]) for path in entries(cache))

    for size in (32, 33):
        load(image, cache, size)
    for age, path in enumerate(entries(cache)):
        os.utime(path, (age, age))
    load(image, cache, 34)
    assert sizes() == [33, 34]
    time.sleep(0.02)  # longer than the steps in which a file system counts time
    load(image, cache, 33)  # a use
    load(image, cache, 32)
    assert sizes() == [33, 34]
    load(image, ImageCache(cache.folder, cache.limit_bytes, began=time.time() + 1), 32)
    assert sizes() == [32, 33]


def test_without_a_place_to_write_images_are_decoded(images: ImageSet, tmp_path: Path):
    """It is said once in one line, and on a full disk as well."""
    (tmp_path / "file").write_text("")
    cache = ImageCache(tmp_path / "file", 1e9)
    np.testing.assert_array_equal(load(images, cache), load(images))
    assert cache.failure == f"image cache: nothing more is written to {cache.folder}: Not a directory"


def test_an_entry_that_another_process_takes_away_ends_nothing(images: ImageSet, cache: ImageCache):
    """Between the list of a folder and the size of its entry; a link to nothing is found in the same state."""
    load(images, cache)
    for entry in entries(cache):
        entry.unlink()
        entry.with_name(f".{entry.name}").symlink_to("gone")
    load(images, cache)
    assert cache.failure == ""
    assert len(entries(cache)) == 2 * len(images)


def test_a_nearly_full_disk_is_left_to_others(images: ImageSet, cache: ImageCache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_cache, "_MIN_FREE_SHARE", 1.0)
    np.testing.assert_array_equal(load(images, cache), load(images))
    assert entries(cache) == []
    assert cache.failure.endswith("the disk is nearly full")


@pytest.mark.parametrize(
    ("setting", "gain", "used"), [("auto", 0.0, True), ("auto", np.inf, False), ("on", np.inf, True)]
)
def test_what_is_chosen_is_said_in_one_line(
    drawn_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, gain: float, used: bool
):
    """auto follows the measured costs, on does not; both name them or the place."""
    monkeypatch.setenv("PHARMCLF_STORAGE_IMAGE_CACHE", str(tmp_path / "images"))
    monkeypatch.setattr(image_cache, "_MIN_GAIN", gain)
    cache, text = choose_image_cache(setting, ImageSet.of(drawn_manifest), np.arange(80), SIZE)
    assert (cache is not None) == used
    assert text.startswith("image cache: on" if used else "image cache: off")
    assert ("decoding takes" in text) == (setting == "auto")
    assert "\n" not in text


def test_a_place_that_cannot_be_written_to_turns_the_cache_off(
    drawn_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PHARMCLF_STORAGE_IMAGE_CACHE", str(tmp_path / "file"))
    cache, text = choose_image_cache("on", ImageSet.of(drawn_manifest), np.arange(80), SIZE)
    assert cache is None
    assert "Not a directory" in text
    assert choose_image_cache("off", ImageSet.of(drawn_manifest), np.arange(80), SIZE) == (None, "")


@pytest.mark.parametrize("value", ["much", "0", "nan"])
def test_a_bad_bound_is_refused(drawn_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("PHARMCLF_STORAGE_IMAGE_CACHE", str(tmp_path / "images"))
    monkeypatch.setenv("PHARMCLF_STORAGE_IMAGE_CACHE_GB", value)
    with pytest.raises(
        ConfigError, match=rf"IMAGE_CACHE_GB: received '{value}', expected a number of gigabytes above 0"
    ):
        choose_image_cache("on", ImageSet.of(drawn_manifest), np.arange(80), SIZE)


@pytest.mark.ray
def test_batches_do_not_depend_on_the_cache(shared_ray: None, drawn_manifest: Manifest, tmp_path: Path):
    """Bit for bit: without it, while it fills, cut off and begun again, and from entries alone; a lack is said once."""
    images = ImageSet.of(drawn_manifest)
    plan = BatchPlan(drawn_manifest.rows("train"), drawn_manifest.rows("validation"), 16, 0, 0, 2)
    cache = ImageCache(tmp_path / "images", 1e9)
    wanted = [batch for batch, _ in ray_loader.load_batches(plan, images, SIZE)]
    cut_off = ray_loader.load_batches(plan, images, SIZE, cache=cache)
    np.testing.assert_array_equal(next(cut_off)[0], wanted[0])
    del cut_off
    resumed = [batch for batch, _ in ray_loader.load_batches(plan, images, SIZE, first=1, cache=cache)]
    np.testing.assert_array_equal(np.stack(resumed), np.stack(wanted[1:]))
    kept = [batch for batch, _ in ray_loader.load_batches(plan, absent(images), SIZE, cache=cache)]
    np.testing.assert_array_equal(np.stack(kept), np.stack(wanted))
    (tmp_path / "file").write_text("")
    said: list[str] = []
    lacking = ImageCache(tmp_path / "file", 1e9)
    streamed = [batch for batch, _ in ray_loader.load_batches(plan, images, SIZE, cache=lacking, say=said.append)]
    np.testing.assert_array_equal(np.stack(streamed), np.stack(wanted))
    assert len(said) == 1
    assert "Not a directory" in said[0]
