"""Labelled sets: splits, and sets from another source, with what is left out of them and why."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pharmclf.config import ConfigError, RunConfig
from pharmclf.data.manifest import Manifest
from pharmclf.evaluation.datasets import (
    external_dataset,
    external_datasets,
    split_dataset,
    unknown_dataset,
    unknown_datasets,
)


@pytest.fixture
def other(drawn_manifest: Manifest, tmp_path: Path) -> Path:
    """Six images of the test split, one of the training split, two of a product that the model does not know."""
    table = drawn_manifest.table
    rows = [*drawn_manifest.rows("test")[:6], drawn_manifest.rows("train")[0]]
    for row in rows:
        folder = tmp_path / "other" / table["label"][row]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(table["path"][row], folder / f"{row}.jpg")
    unknown = tmp_path / "other" / "Unknown"
    unknown.mkdir()
    for row in drawn_manifest.rows("test")[6:8]:
        shutil.copy(table["path"][row], unknown / f"{row}.jpg")
    return tmp_path / "other"


def test_a_split_is_a_set_of_its_rows(drawn_manifest: Manifest):
    """Paths, labels and groups stand in the order of the rows."""
    images = split_dataset(drawn_manifest, "test", "drawn")
    table = drawn_manifest.table
    assert images.rows.tolist() == table.index[table["split"] == "test"].tolist()
    assert images.paths == table["path"][images.rows].tolist()
    assert images.labels == table["label"][images.rows].tolist()
    assert images.groups.tolist() == table["group"][images.rows].tolist()


def test_a_set_from_outside_leaves_out_what_was_trained_on_and_what_is_unknown(
    other: Path, drawn_manifest: Manifest, tmp_path: Path
):
    """The training image and the product that the model does not know are left out, each with a note."""
    names = drawn_manifest.class_names
    images = external_dataset("x", str(other), names, cache=str(tmp_path / "cache"), known=drawn_manifest)
    assert len(images.rows) == 6
    assert set(images.labels) <= set(names)
    notes = "\n".join(images.notes)
    assert "trained on copies of them: 1 image" in notes
    assert "Unknown" in notes
    apart = external_dataset("x", str(other), names, cache=str(tmp_path / "cache"))
    assert len(apart.rows) == 7


def test_a_set_of_unknown_products_leaves_out_those_that_are_known(
    other: Path, drawn_manifest: Manifest, tmp_path: Path
):
    """Also where their folders are written in another case; images in no folder are of the set as a whole."""
    names = drawn_manifest.class_names
    known = next(folder for folder in other.iterdir() if folder.name != "Unknown")
    known.rename(other / known.name.upper())
    next(iter((other / "Unknown").iterdir())).rename(other / "loose.jpg")
    images = unknown_dataset("x", str(other), names, cache=str(tmp_path / "cache"))
    assert sorted(images.labels) == ["Unknown", "x"]
    assert "left out, as the model knows their products: 7 images" in images.notes
    flat = unknown_dataset("y", str(other / "Unknown"), names, cache=str(tmp_path / "cache"))
    assert flat.labels == ["y"]


def test_a_set_with_nothing_but_known_products_is_no_set_of_unknown_ones(
    other: Path, drawn_manifest: Manifest, tmp_path: Path
):
    """The set is named, and what was found; a name stands for one set only."""
    shutil.rmtree(other / "Unknown")
    config = RunConfig(storage=str(tmp_path / "runs"), unknown=(f"x={other}",))
    with pytest.raises(ConfigError, match=r"^x: .*no image of an unknown product is left .*knows their products: 7"):
        unknown_datasets(config, drawn_manifest)
    with pytest.raises(ConfigError, match="unknown: received x, which eval_data has too"):
        RunConfig(unknown=(f"x={other}",), eval_data=(f"x={other}",))
    with pytest.raises(ConfigError, match="unknown: received 'x', expected NAME=DIR"):
        RunConfig(unknown=("x",))


def test_a_set_in_which_nothing_can_be_scored_is_refused(other: Path, drawn_manifest: Manifest, tmp_path: Path):
    """Only unknown products, only training images, nothing at all: each says which set it is, and what was found."""
    names = drawn_manifest.class_names
    for folder in other.iterdir():
        if folder.name != "Unknown":
            shutil.rmtree(folder)
    with pytest.raises(ConfigError, match=r"(?s)^x: .*Unknown"):
        external_dataset("x", str(other), names, cache=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"^x: .*nowhere"):
        external_dataset("x", str(tmp_path / "nowhere"), names, cache=str(tmp_path / "cache"))
    row = drawn_manifest.rows("train")[0]
    trained = tmp_path / "trained" / names[0]
    trained.mkdir(parents=True)
    shutil.copy(drawn_manifest.table["path"][row], trained / "a.jpg")
    with pytest.raises(ConfigError, match="no image is left to test on"):
        external_dataset("x", str(trained.parent), names, cache=str(tmp_path / "cache"), known=drawn_manifest)


def test_a_run_takes_several_sets_by_their_names(other: Path, drawn_manifest: Manifest, tmp_path: Path):
    config = RunConfig(storage=str(tmp_path / "runs"), eval_data=(f"one={other}", f"two={other}"))
    assert [images.name for images in external_datasets(config, drawn_manifest)] == ["one", "two"]


@pytest.mark.parametrize("text", ["shifted", "=x", "a b=x", "test=x", "../a=x", "a="])
def test_a_set_without_a_usable_name_or_place_is_refused(text: str):
    with pytest.raises(ConfigError, match="eval_data"):
        RunConfig(eval_data=(text,))


def test_a_name_that_stands_there_twice_is_refused():
    with pytest.raises(ConfigError, match="taken already"):
        RunConfig(eval_data=("a=x", "a=y"))


def test_images_that_are_lost_leave_a_set_with_their_names(drawn_manifest: Manifest):
    """Rows, labels and groups of the others stay together; a set that loses all is refused."""
    images = split_dataset(drawn_manifest, "test", "drawn")
    reasons = ["", "not there", *[""] * (len(images.rows) - 3), "changed"]
    left = images.without(reasons)
    assert left.rows.tolist() == [row for row, reason in zip(images.rows, reasons, strict=True) if not reason]
    assert left.lost == {images.rows[1]: "not there", images.rows[-1]: "changed"}
    assert left.labels == [label for label, reason in zip(images.labels, reasons, strict=True) if not reason]
    assert f"2 images ({images.paths[1]}: not there; {images.paths[-1]}: changed)" in left.notes[-1]
    assert images.without([""] * len(images.rows)) is images
    with pytest.raises(ConfigError, match="test: no image is left to test on"):
        images.without(["not there"] * len(images.rows))
