"""What is read of a data set for a report: a bounded, even sample, an example of each class, and the extreme images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.manifests import build_manifest

from pharmclf.data.manifest import Manifest
from pharmclf.reporting import image_sample
from pharmclf.reporting.image_sample import find_extremes, sample_dataset, sample_rows


@given(st.lists(st.sampled_from("abcdefg"), max_size=80), st.integers(1, 40))
def test_a_sample_is_bounded_and_as_even_as_the_classes_allow(labels: list[str], most: int):
    rows = sample_rows(labels, most)
    assert len(rows) <= most
    assert sorted(set(rows.tolist())) == rows.tolist()
    taken, there = Counter(labels[row] for row in rows), Counter(labels)
    assert len(taken) == min(most, len(there))
    if taken:
        each = most // len(taken)
        assert all(count == min(each, there[name]) for name, count in taken.items())


def test_every_class_has_an_example_and_every_image_a_size(drawn_manifest: Manifest):
    examples, measures = sample_dataset(drawn_manifest)
    assert list(examples) == list(drawn_manifest.class_names)
    assert all(item.label == name and f"/{name}/" in item.path for name, item in examples.items())
    assert [measure.name for measure in measures] == ["size", "brightness", "sharpness"]
    assert {len(measure.values) for measure in measures} == {80}
    assert all((np.diff(measure.values) >= 0).all() for measure in measures)


def test_no_more_images_are_read_than_the_bound(drawn_manifest: Manifest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_sample, "SAMPLED_IMAGES", 5)
    examples, (size, brightness, sharpness) = sample_dataset(drawn_manifest)
    assert len(examples) == len(brightness.values) == len(sharpness.values) == 5
    assert len(size.values) == 80


def test_a_dark_a_blurred_and_a_small_image_are_found(tmp_path: Path):
    """Among forty ordinary photographs each stands at the end of its range, as an outlier, with its path and value."""
    generator = np.random.default_rng(0)
    for number in range(40):
        pixels = generator.integers(60, 200, (20, 20, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
        image = Image.fromarray(pixels)
        if number == 3:
            image = image.point(lambda level: level // 20)
        if number == 5:
            image = Image.fromarray(pixels).resize((4, 4)).resize((200, 200), Image.Resampling.BICUBIC)
        if number == 7:
            image = image.resize((40, 40))
        place = tmp_path / ("odd" if number % 2 else "even") / f"{number:02}.png"
        place.parent.mkdir(exist_ok=True)
        image.save(place)
    _, measures = sample_dataset(build_manifest(str(tmp_path)))
    lowest = {measure.name: measure.extremes[0] for measure in measures}
    assert {name: Path(item.path).stem for name, item in lowest.items()} == {
        "size": "07",
        "brightness": "03",
        "sharpness": "05",
    }
    assert all(
        item.is_outlier and item.value == measure.values[0]
        for item, measure in zip(lowest.values(), measures, strict=True)
    )
    assert lowest["size"].value == 40
    assert lowest["size"].image.shape == (40, 40, 3)


def test_without_an_outlier_the_ends_of_the_range_are_shown():
    values = np.linspace(0.4, 0.6, 21).tolist()
    assert find_extremes("brightness", values) == [(0, False), (20, False)]
    assert find_extremes("sharpness", values) == [(0, False)]
    assert find_extremes("size", [300.0] * 9) == []
    assert find_extremes("size", []) == []


def test_a_file_that_has_changed_is_left_out(tmp_path: Path):
    for name in ("a", "b"):
        for number in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            level = np.full((32, 32, 3), 40 * number + (10 if name == "a" else 90), np.uint8)
            level[number : number + 8] = 255
            Image.fromarray(level).save(tmp_path / name / f"{number}.png")
    manifest = build_manifest(str(tmp_path))
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    examples, measures = sample_dataset(manifest)
    assert examples["a"].path.endswith("a/1.png")
    assert [len(measure.values) for measure in measures] == [6, 5, 5]
