"""What folders say: which is the label, which a split, and what is refused because it can be read in two ways."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest

from pharmclf.config import ConfigError
from pharmclf.data.folder_layouts import LayoutOptions, label_key, merge_labels, parse_folders


def read(*folders: str, **reading: object) -> tuple[dict[str, str], str]:
    """Label and split of folders that hold three images each, and all notes."""
    counts = {tuple(folder.split("/")): 3 for folder in folders}
    layout = parse_folders("DATA", counts, LayoutOptions(**reading))
    found = {"/".join(folder): label for folder, label in layout.labels.items()}
    splits = {"/".join(folder): split for folder, split in layout.splits.items()}
    return {folder: f"{label} {splits[folder]}".strip() for folder, label in found.items()}, "\n".join(layout.notes)


# ---- the label


@pytest.mark.parametrize("above", ["", "archive/", "Drug Vision/Data Combined/", "images/"])
def test_class_folders_are_labels_and_nothing_is_said(above: str):
    """Also below folders that all of them share."""
    found, notes = read(f"{above}aspirin", f"{above}ibuprofen", f"{above}top")
    assert found == {f"{above}{name}": name for name in ("aspirin", "ibuprofen", "top")}
    assert notes == ""


@pytest.mark.parametrize(
    "below",
    [
        ("front", "back"),
        ("Vorderseite", "Rückseite"),
        ("2024-01-31", "2024-02-01"),
        ("batch 1", "batch2"),
        ("raw", "crops"),
    ],
)
def test_the_product_is_the_label_where_sides_lie_below_it(below: tuple[str, str]):
    """Sides, dates and batches are no products; the note names the level and the way back."""
    found, notes = read(*[f"{name}/{side}" for name in ("aspirin", "ibuprofen") for side in below])
    assert set(found.values()) == {"aspirin", "ibuprofen"}
    assert found[f"aspirin/{below[1]}"] == "aspirin"
    assert "--label-level 1: aspirin, ibuprofen; --label-level -1 makes it" in notes


def test_images_of_a_product_and_of_its_sides_are_one_label():
    """Some lie in its folder, some below it, some without a side."""
    found, _ = read("aspirin", "aspirin/back", "ibuprofen")
    assert found == {"aspirin": "aspirin", "aspirin/back": "aspirin", "ibuprofen": "ibuprofen"}


def test_sides_above_the_products_are_no_labels():
    """front/aspirin and back/aspirin are one class."""
    found, _ = read("front/aspirin", "front/ibuprofen", "back/aspirin", "back/ibuprofen")
    assert found["back/aspirin"] == found["front/aspirin"] == "aspirin"


def test_only_sides_are_labels():
    """A set whose only folders are sides is about sides."""
    assert read("pill/front", "pill/back")[0] == {"pill/front": "front", "pill/back": "back"}


def test_the_folder_of_the_images_is_the_label_of_a_catalogue():
    """Other names below each parent; the note says what was not used, and a name that two parents have."""
    catalogue = [f"bayer/p{number}" for number in range(9)] + ["novartis/x", "novartis/y", "novartis/p0"]
    found, notes = read(*catalogue)
    assert found == {folder: folder.split("/")[1] for folder in catalogue}
    assert "--label-level 2: p0, p1, p2 and 8 more; the folders above are not used: bayer, novartis" in notes
    assert "labels whose images lie below several folders: p0" in notes
    deep, _ = read("bayer/aspirin/front", "bayer/aleve/front", "novartis/voltaren/back")
    assert set(deep.values()) == {"aspirin", "aleve", "voltaren"}


@pytest.mark.parametrize(
    ("folders", "one", "other"),
    [
        (
            ("site a/aspirin", "site a/ibuprofen", "site b/aspirin", "site b/ibuprofen"),
            "site a, site b with --label-level 1",
            "aspirin, ibuprofen with --label-level 2",
        ),
        (
            ("archive/capsules/a", "archive/capsules/b", "archive/syrup"),
            "capsules, syrup with --label-level 2",
            "a, b, syrup with --label-level -1",
        ),
        (("aspirin", "aspirin/forte", "other"), "aspirin, other with --label-level 1", "aspirin, forte, other"),
    ],
)
def test_two_readings_are_refused_with_both(folders: tuple[str, ...], one: str, other: str):
    """Each with the setting that chooses it, and each of these settings gives just these labels."""
    with pytest.raises(ConfigError, match=f"the labels are {one}, or {other}"):
        read(*folders)
    for reading in (one, other):
        names, _, level = reading.partition(" with --label-level ")
        assert set(read(*folders, label_level=int(level or -1))[0].values()) == set(names.split(", "))


def test_depths_that_differ_are_read_where_both_readings_agree():
    """As archives unpack that hold a folder of their own name."""
    found, _ = read("aspirin/aspirin", "ibuprofen")
    assert found == {"aspirin/aspirin": "aspirin", "ibuprofen": "ibuprofen"}


def test_the_level_counts_from_the_data_or_from_the_image():
    """Folders that do not have it have no label; a level that nothing has is refused."""
    found, _ = read("a/b/c", "a/d", label_level=2)
    assert found == {"a/b/c": "b", "a/d": "d"}
    assert read("a/b/c", "a", label_level=-2)[0] == {"a/b/c": "b"}
    with pytest.raises(ConfigError, match=r"--label-level 4, .*Expected at most 3"):
        read("a/b/c", "a/d", label_level=4)


def test_the_classes_of_a_model_choose_the_folder():
    """The innermost that has the name of a class; what the model does not know keeps its own folder's."""
    found, _ = read(
        "site a/Aspirin/front",
        "site b/ibuprofen",
        "site b/zinc/back",
        classes=("aspirin", "ibuprofen"),
        keep_splits=False,
    )
    assert list(found.values()) == ["Aspirin", "ibuprofen", "zinc"]


# ---- splits


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Training", "val", "TESTING"), ("train", "validation", "test")]
)
@pytest.mark.parametrize(
    "layout", ["{split}/{label}", "archive/{split}/{label}", "{label}/{split}", "x/{split}/y/{label}/front"]
)
def test_folders_of_splits_give_them(names: tuple[str, ...], layout: str):
    """At the top, right above the classes or below them; the note counts the images and names the way out."""
    folders = {
        layout.format(split=name, label=label): f"{label} {split}"
        for name, split in zip(names, ("train", "validation", "test"), strict=True)
        for label in ("aspirin", "ibuprofen")
    }
    found, notes = read(*folders)
    assert found == folders
    assert f"folders {', '.join(names)}: 6 train, 6 validation, 6 test; --split.ignore-folders" in notes
    drawn, notes = read(*folders, keep_splits=False)
    assert drawn == {folder: label.split()[0] for folder, label in folders.items()}
    assert "they are not kept" in notes


def test_images_beside_folders_of_splits_are_drawn_and_counted():
    """Those of other folders have no split; unlabelled ones of a split are left out."""
    found, notes = read("train/a", "train/b", "test/a", "test/b", "a", "valid")
    assert found["a"] == "a"
    assert "valid" not in found
    assert "theirs is drawn: 3 images" in notes


def test_one_split_with_labels_gives_none():
    """A set whose test images have no labels is divided as any other."""
    assert read("train/a", "train/b", "test")[0] == {"train/a": "a", "train/b": "b"}
    assert read("train/a", "train/b")[0] == {"train/a": "a", "train/b": "b"}


def test_folders_of_splits_without_classes_are_refused():
    """Unless they are said to be labels, or lie among products."""
    with pytest.raises(ConfigError, match="train, test are named like splits, and hold images without class folders"):
        read("train", "test")
    assert read("train", "test", label_level=-1)[0] == {"train": "train", "test": "test"}
    assert read("train", "test", "car")[0] == {"train": "train", "test": "test", "car": "car"}


# ---- twins


def test_labels_that_differ_in_case_blanks_and_unicode_form_are_one():
    """The form of most images is the name; the others are named so that they can be told apart."""
    composed, decomposed = (unicodedata.normalize(form, "Clopidogrél") for form in ("NFC", "NFD"))
    labels = (
        ["aspirin"] * 2 + ["Aspirin"] * 3 + ["Aspirin "] + [composed, decomposed, "Zinc  5", "Zinc\u00a05", "zinc-5"]
    )
    changed, notes = merge_labels(labels)
    assert Counter(changed.get(label, label) for label in labels) == {
        "Aspirin": 6, composed: 2, "Zinc 5": 2, "zinc-5": 1,
    }  # fmt: skip
    assert len(notes) == 1
    for text in ("Aspirin (also 'Aspirin ', aspirin)", r"'Clopidogre\u0301l'"):
        assert text in notes[0]


def test_labels_without_twins_stay_as_they_are():
    """Whatever they look like; the classes of a model are left as the model has them."""
    assert merge_labels(["Aspirin ", "b"]) == ({}, [])
    assert merge_labels(["Aspirin", "aspirin", "B "], ["Aspirin", "aspirin", "b"])[0] == {"B ": "b"}
    assert label_key("ÉTUI  1") == label_key("e\u0301tui 1")
