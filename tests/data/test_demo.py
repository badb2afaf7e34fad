"""The demo data set: determinism, what the images are, and how the folder is written."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pharmclf.config import ConfigError
from pharmclf.data import demo, demo_images


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def test_the_same_seed_class_and_index_draw_the_same_bytes():
    """An image depends on its three numbers alone: not on what was drawn before, nor on numpy's global state."""
    first = demo.render_jpeg(3, 4, 5)
    np.random.seed(1)
    demo.render_jpeg(3, 4, 6)
    assert demo.render_jpeg(3, 4, 5) == first


def test_another_seed_class_or_index_draws_another_image():
    """None of the three numbers is ignored or mixed up with another."""
    keys = [(0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3), (2, 1, 0), (0, 2, 1), (1, 2, 0), (2**40, 1, 2)]
    assert len({demo.render_jpeg(*key) for key in keys}) == len(keys)


def test_ten_classes_are_named_in_sorted_order():
    """A class index means the same here as in a manifest, which sorts its class names."""
    assert len(set(demo.CLASS_NAMES)) == 10
    assert list(demo.CLASS_NAMES) == sorted(demo.CLASS_NAMES)


@pytest.mark.parametrize("class_index", range(10))
def test_images_are_rgb_of_300_pixels_and_not_flat(class_index: int):
    """Every class draws photo-like pictures: right size and mode, neither black nor blown out, with texture."""
    for index in range(4):
        image = Image.open(io.BytesIO(demo.render_jpeg(0, class_index, index)))
        assert (image.size, image.mode, image.format) == ((300, 300), "RGB", "JPEG")
        pixels = np.asarray(image, np.float32)
        assert 15 < pixels.mean() < 240
        assert pixels.std() > 5


def test_products_of_a_group_differ_in_what_is_pressed_into_them():
    """With everything else equal (same random draws), look-alikes differ in some pixels of the product, not in all."""
    light, to_image = np.array((0.6, 0.8)), np.array(((40.0, 0.0), (0.0, 40.0)))
    for left, right in ((0, 1), (1, 2), (0, 2), (3, 4), (5, 6)):
        faces = [
            np.asarray(
                demo_images._render_tablet(demo_images._PRODUCTS[index], np.random.default_rng(0), light, to_image)[0],
                np.int32,
            )
            for index in (left, right)
        ]
        share = (np.abs(faces[0] - faces[1]).max(axis=2) > 12).mean()
        assert 0.005 < share < 0.3


@pytest.mark.parametrize("arguments", [(-1, 0, 0), (0, -1, 0), (0, 10, 0), (0, 0, -1)])
def test_numbers_out_of_range_are_refused(arguments: tuple[int, int, int]):
    """A negative seed or index, or a class that is not there, is an error of the caller and says so."""
    with pytest.raises(ConfigError, match="expected a seed and an index of 0 or more and a class from 0 to 9"):
        demo_images.render_product(*arguments)


def test_the_folder_holds_each_class_with_its_images(tmp_path: Path):
    """The layout is <folder>/<Class>/<class>_0000.jpg, the files are those of `jpeg`, and nothing else is left."""
    folder = demo.write_demo(tmp_path / "deep" / "demo", seed=0, images_per_class=2)
    expected = {
        f"{name}/{name.lower()}_{index:04d}.jpg": demo.render_jpeg(0, number, index)
        for number, name in enumerate(demo.CLASS_NAMES)
        for index in range(2)
    }
    assert _files(folder) == expected
    assert [path.name for path in folder.parent.iterdir()] == ["demo"]


def test_a_complete_folder_is_left_as_it_is(tmp_path: Path):
    """The second call draws nothing: the files keep their inodes."""
    folder = demo.write_demo(tmp_path / "demo", seed=0, images_per_class=1)
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    demo.write_demo(folder, seed=0, images_per_class=1)
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == before


@pytest.mark.parametrize("change", ["seed", "count", "version", "lost file"])
def test_a_folder_with_other_values_or_a_lost_file_is_drawn_anew(tmp_path: Path, change: str):
    """A demo of another seed, size or generator, or one that lacks a file, is replaced as a whole."""
    seed, count = (1 if change == "seed" else 0), (2 if change == "count" else 1)
    folder = demo.write_demo(tmp_path / "demo", seed=seed, images_per_class=count)
    marker = folder / demo.MARKER
    if change == "version":
        marker.write_text(json.dumps(json.loads(marker.read_text()) | {"generator_version": 0}))
    if change == "lost file":
        next(folder.rglob("*_0000.jpg")).unlink()
    demo.write_demo(folder, seed=0, images_per_class=1)
    assert len(_files(folder)) == 10
    assert json.loads(marker.read_text()) == {
        "generator_version": demo.GENERATOR_VERSION,
        "seed": 0,
        "images_per_class": 1,
    }
    assert _files(folder)["Ambrovex/ambrovex_0000.jpg"] == demo.render_jpeg(0, 0, 0)


def test_a_folder_of_somebody_else_is_refused_and_untouched(tmp_path: Path):
    """Without the marker nothing is deleted; the message says what stands there and what to do."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="Give another folder"):
        demo.write_demo(tmp_path, seed=0, images_per_class=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match="Give another folder"):
        demo.write_demo(tmp_path / "mine.txt", seed=0, images_per_class=1)


def test_an_empty_folder_is_filled(tmp_path: Path):
    """A folder made by the user beforehand holds nothing that could be lost."""
    assert len(_files(demo.write_demo(tmp_path, seed=0, images_per_class=1))) == 10


@pytest.mark.parametrize(("seed", "count"), [(-1, 1), (0, 0)])
def test_a_data_set_out_of_range_is_refused(tmp_path: Path, seed: int, count: int):
    """A negative seed or no images at all are refused before anything is written."""
    with pytest.raises(ConfigError, match="images per class"):
        demo.write_demo(tmp_path / "demo", seed=seed, images_per_class=count)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stands_before", [False, True])
def test_a_crash_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stands_before: bool):
    """Written whole or not at all: an error half way leaves the old data set, or nothing, and no temporary folder."""
    folder = tmp_path / "demo"
    if stands_before:
        demo.write_demo(folder, seed=0, images_per_class=1)
    before = _files(folder)
    drawn = demo.render_jpeg

    def break_at_the_fifth_class(seed: int, class_index: int, index: int) -> bytes:
        if class_index == 4:
            raise OSError("disk full")
        return drawn(seed, class_index, index)

    monkeypatch.setattr(demo, "render_jpeg", break_at_the_fifth_class)
    with pytest.raises(OSError, match="disk full"):
        demo.write_demo(folder, seed=5, images_per_class=1)
    assert _files(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == (["demo"] if stands_before else [])


def test_drawing_is_quick():
    """1,000 images take seconds: far slower than the measured 170 per second and core would be a defect."""
    demo.render_jpeg(0, 0, 0)  # makes the textures
    start = time.process_time()
    for index in range(20):
        demo.render_jpeg(0, index % 10, index)
    assert 20 / (time.process_time() - start) > 40
