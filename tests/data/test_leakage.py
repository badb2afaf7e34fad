"""Copies across data sets: what the model was trained on is found in another set, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.manifests import build_manifest

from pharmclf.data.leakage import find_leaked_images, keep_splits
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import cached_manifest


@pytest.fixture
def other(drawn_manifest: Manifest, tmp_path: Path) -> Manifest:
    """A byte-for-byte copy, a mirrored and a smaller, re-encoded one of training images; images of the test split."""
    paths = drawn_manifest.table["path"]
    train, test = (drawn_manifest.rows(split) for split in ("train", "test"))
    folder = tmp_path / "other" / "product"
    folder.mkdir(parents=True)
    shutil.copy(paths[train[0]], folder / "copied.jpg")
    with Image.open(paths[train[1]]) as image:
        image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(folder / "smaller.jpg", quality=60)
    with Image.open(paths[train[2]]) as image:
        ImageOps.mirror(image).save(folder / "mirrored.jpg", quality=85)
    for row in test[:6]:
        shutil.copy(paths[row], folder / f"test-{row}.jpg")
    return cached_manifest(str(folder.parent), str(tmp_path / "cache"), min_classes=1)


def names_of(manifest: Manifest, rows: Any) -> list[str]:
    return [Path(path).name for path in manifest.table["path"].loc[rows]]


def test_copies_of_training_images_are_found_and_others_are_not(other: Manifest, drawn_manifest: Manifest):
    """Byte for byte, mirrored, and re-encoded at three quarters; images of a split that is not asked for stay."""
    assert names_of(other, find_leaked_images(other, drawn_manifest, ("train",))) == [
        "copied.jpg",
        "mirrored.jpg",
        "smaller.jpg",
    ]


def test_every_split_that_is_asked_for_counts(other: Manifest, drawn_manifest: Manifest):
    found = names_of(other, find_leaked_images(other, drawn_manifest, ("train", "test")))
    assert sorted(found) == sorted(Path(path).name for path in other.table["path"])


def test_a_set_without_copies_has_none(drawn_images: str, drawn_manifest: Manifest):
    """The test split against the training split of the same data set, which share no near duplicate."""
    table = drawn_manifest.table
    alone = Manifest(table[table["split"] == "test"], drawn_manifest.class_names, drawn_manifest.root)
    assert find_leaked_images(alone, drawn_manifest, ("train", "validation")).tolist() == []
    assert len(find_leaked_images(build_manifest(drawn_images), drawn_manifest, ("train",))) == np.sum(
        table["split"] == "train"
    )


def test_a_single_known_image_is_searched_for_too(drawn_manifest: Manifest):
    """All others are different from it."""
    table = drawn_manifest.table
    row = table.index[table["split"] == "train"][0]
    known = Manifest(table.loc[[row]], drawn_manifest.class_names, drawn_manifest.root)
    assert find_leaked_images(drawn_manifest, known, ("train",)).tolist() == [row]


def test_images_that_another_run_knows_keep_their_splits(other: Manifest, drawn_manifest: Manifest):
    """Copies of its training images are for training, those of its test split for the test; others stay as drawn."""
    drawn = other.with_splits(["validation"] * len(other.ok))
    kept = keep_splits(drawn, drawn_manifest).ok
    names = [Path(path).name for path in kept["path"]]
    expected = ["test" if name.startswith("test-") else "train" for name in names]
    assert kept["split"].tolist() == expected
    table = drawn_manifest.table
    strangers = Manifest(table[table["split"] == "test"], drawn_manifest.class_names, drawn_manifest.root)
    assert keep_splits(drawn, strangers).ok["split"].tolist() == [
        "test" if name.startswith("test-") else "validation" for name in names
    ]


def test_a_group_that_is_known_in_part_stays_together(drawn_manifest: Manifest):
    table = drawn_manifest.table
    rows = table.index[table["split"] == "train"][:3].tolist()
    together = table.copy()
    together.loc[rows, "group"] = -7
    together.loc[rows, "split"] = "test"
    known = Manifest(table.loc[rows[:1]], drawn_manifest.class_names, drawn_manifest.root)
    kept = keep_splits(Manifest(together, drawn_manifest.class_names, drawn_manifest.root), known)
    assert kept.table.loc[rows, "split"].tolist() == ["train"] * 3
