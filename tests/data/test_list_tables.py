"""Lists as spreadsheets and other tools write them; the files are empty, since nothing of them is read here."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.data.dataset_listing import DatasetListing, ImageEntry, list_dataset
from pharmclf.data.list_files import not_found_message, resolve_path

NAMES = ["img/aspirin/1.jpg", "img/aspirin/2.jpg", "img/ibuprofen/3.png", "img/ibuprofen/4.png"]
LABELS = ["aspirin", "aspirin", "ibuprofen", "ibuprofen"]
PLAIN = list(zip(NAMES, LABELS, strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def listing(folder: Path, content: str | bytes, name: str = "list.csv") -> DatasetListing:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return list_dataset(str(folder / name))


def rows(items: list[ImageEntry]) -> list[tuple[str, str]]:
    return [(item.relative, item.label) for item in items]


def text(header: str, separator: str = ",", end: str = "\n") -> str:
    return end.join([header, *(f"{path}{separator}{label}" for path, label in PLAIN)]) + end


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (text("path,label"), ""),
        (text("filename,class"), "filename as path, class as label"),
        (text("Path,Label"), "Path as path, Label as label"),
        (text("File Name , Category", " , "), "File Name as path, Category as label"),
        (text("path;label", ";"), "separated by ';'"),
        (text("path\tlabel", "\t", "\r\n"), "separated by tabs"),
        (text("path,label", end="\r"), ""),
        ("sep=;\r\n" + text("path;label", ";", "\r\n"), "separated by ';'"),
        ("\ufeff" + text("path,label"), ""),
        (text("path\tlabel", "\t").encode("utf-16"), "separated by tabs"),
        (text("path;label", ";").encode("utf-16-le"), "separated by ';'"),
        (text("path,label") + ",\n  , \n", ""),
        (text("path,label,label_name,image", end=",7,x.png\n").replace("image,7,x.png", "image"), ""),
        (text("path,label").replace("/", "\\"), "paths with \\ between folders, read as /: 4"),
        (text("path,label").replace(".jpg", "").replace(".png", ""), "without an ending, found as .jpg, .png: 4"),
        (text("path,label").replace("img/", "./img/"), ""),
    ],
)
def test_a_list_gives_the_same_rows_however_it_is_written(folder: Path, content: str | bytes, note: str):
    """Headers, separators, encodings, line ends, separators of paths and endings; what is not plain is in one note."""
    found = listing(folder, content)
    assert rows(found.items) == PLAIN
    assert [wanted for wanted in found.notes if note not in wanted] == []
    assert len(found.notes) == bool(note)


def test_names_with_accents_are_read_in_the_encoding_of_a_spreadsheet(folder: Path):
    """Windows-1252 where it is not UTF-8, and a note; UTF-8 without one."""
    accents = text("path,label").replace("aspirin\n", "Äspirin für Säuglinge\n")
    for encoding, note in (("cp1252", "the list is not UTF-8 and is read as Windows-1252"), ("utf-8", "")):
        found = listing(folder, accents.encode(encoding))
        assert {item.label for item in found.items} == {"Äspirin für Säuglinge", "ibuprofen"}
        assert [wanted.partition(";")[0] for wanted in found.notes] == ([note] if note else [])


def test_words_for_splits_are_understood(folder: Path):
    """In any case, by the names of other tools, and with a note that says how each was read."""
    words = ["Train", "val", "TEST", "testing"]
    found = listing(
        folder, "path,label,subset\n" + "".join(f"{n},{w},{w}\n" for n, w in zip(NAMES, words, strict=True))
    )
    assert [item.split for item in found.items] == ["train", "validation", "test", "test"]
    assert (
        "splits of the list: TEST read as test, Train read as train, testing read as test, val read as validation"
        in found.notes
    )


def test_a_column_called_set_that_holds_no_split_is_no_split(folder: Path):
    """Its name may mean anything, its values decide; one of them that is a split makes the others an error."""
    header = "path,label,set\n"
    plain = listing(folder, header + "".join(f"{name},{name[4]},blister\n" for name in NAMES))
    assert {item.split for item in plain.items} == {""}
    with pytest.raises(ConfigError, match="row 2: split 'blister', expected train, validation, test or nothing"):
        listing(folder, header + f"{NAMES[0]},a,train\n{NAMES[1]},b,blister\n")


def test_whole_numbers_stay_whole_numbers(folder: Path):
    """A gap makes a column of floats in Parquet, and ".0" in CSV; zeros in front stay, and so do true fractions."""
    gap = pd.DataFrame({"path": NAMES, "label": [7.0, 0.0, None, 1.0]})
    gap.to_parquet(folder / "gap.parquet")
    assert [item.label for item in list_dataset(str(folder / "gap.parquet")).items] == ["7", "0", "", "1"]
    found = listing(folder, gap.to_csv(index=False))
    assert [item.label for item in found.items] == ["7", "0", "", "1"]
    assert found.notes == ["labels are whole numbers written as 7.0; read without .0"]
    zeros = listing(folder, "path,label\n" + "".join(f"{name},00{n}\n" for n, name in enumerate(NAMES)))
    assert [item.label for item in zeros.items] == ["000", "001", "002", "003"]
    fractions = pd.DataFrame({"path": NAMES, "label": [0.5, 1.0, 0.5, 1.0]})
    fractions.to_parquet(folder / "fractions.parquet")
    assert [item.label for item in list_dataset(str(folder / "fractions.parquet")).items] == [
        "0.5",
        "1.0",
        "0.5",
        "1.0",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,image,label\na,b,c\n", "the columns file and image may each hold the path of an image"),
        ("path,class,product\na,b,c\n", "the columns class and product may each hold the label of an image"),
        ("path,label\na,b,c\n", "line 2 has 3 cells and the first line 2"),
        ('path,label\n"a,b\n', "not a list: unexpected end of data"),
        (",\n", "not a list: it is empty"),
        ("", "not a list: it is empty"),
        ("path,label\n", "the list has no row"),
        ("path,label\na,b\n,b\n", "row 2 has no path"),
        ("path,label,split\na,b,exam\n", "row 1: split 'exam', expected train, validation, test or nothing"),
        ("img/aspirin/1.jpg,aspirin\n", "no column path and label; found: img/aspirin/1.jpg, aspirin"),
    ],
)
def test_a_list_with_two_meanings_or_none_is_refused(folder: Path, content: str, message: str):
    """What was received, and how to mend it."""
    with pytest.raises(ConfigError, match=message):
        listing(folder, content)


def test_a_column_of_images_in_a_parquet_file_is_not_taken_as_paths(folder: Path):
    """Some data sets have the files themselves in a column `image`."""
    frame = pd.DataFrame({"image": [{"bytes": b"jpeg"}] * 4, "file": NAMES, "label": LABELS})
    frame.to_parquet(folder / "list.parquet")
    assert rows(list_dataset(str(folder / "list.parquet")).items) == PLAIN


def test_a_path_without_an_ending_that_fits_two_images_is_refused(folder: Path):
    """Neither is chosen silently."""
    (folder / "img/aspirin/1.png").touch()
    with pytest.raises(ConfigError, match=r"1 has no ending, and both .*1\.jpg and .*1\.png are there"):
        listing(folder, "path,label\nimg/aspirin/1,aspirin\n")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("aspirin/1.jpg", "The first is 'aspirin/1.jpg', looked for as FOLDER/aspirin/1.jpg; "
                        "FOLDER holds img, list.csv. "),
        ("img\\aspirin\\9.jpg", "looked for as FOLDER/img\\aspirin\\9.jpg and FOLDER/img/aspirin/9.jpg; "
                              "FOLDER/img/aspirin holds 1.jpg, 2.jpg. "),
        ("img/aspirin/9", "and with the ending of an image; FOLDER/img/aspirin holds 1.jpg, 2.jpg. "),
    ],
)  # fmt: skip
def test_a_list_whose_files_are_all_missing_says_what_was_tried_and_what_is_there(
    folder: Path, path: str, message: str
):
    """The remedy is that of a list, not of class folders."""
    with pytest.raises(ConfigError) as refused:
        listing(folder, f"path,label\n{path},aspirin\n{path}x,ibuprofen\n")
    assert "none of its 2 paths leads to a file" in str(refused.value)
    assert message.replace("FOLDER", str(folder)) in str(refused.value)
    assert str(refused.value).endswith(f"Write paths relative to the list's folder {folder}, or absolute ones")


@pytest.mark.parametrize(
    ("location", "path", "expected"),
    [
        ("/list.csv", "img/1.jpg", "/img/1.jpg"), ("/a/list.csv", "../img/1.jpg", "/img/1.jpg"),
        ("s3://bucket/list.csv", "img/1.jpg", "s3://bucket/img/1.jpg"),
        ("s3://bucket/a/list.csv", "../img/./1.jpg", "s3://bucket/img/1.jpg"),
        ("s3://bucket/a/list.csv", "../../../1.jpg", "s3://bucket/1.jpg"), ("s3://bucket/list.csv", "/1.jpg", "/1.jpg"),
        ("s3://bucket/list.csv", "s3://other/a/../1.jpg", "s3://other/a/../1.jpg"),
    ],
)  # fmt: skip
def test_a_path_is_relative_to_the_folder_of_its_list_wherever_that_is(location: str, path: str, expected: str):
    """Also in the root of a disk, and with .. in a bucket, where keys have no such parts."""
    assert resolve_path(storage.parent(location), path) == expected


def test_missing_files_of_a_list_in_the_root_of_a_disk_are_reported():
    """The folder that exists is looked for upwards, and the root is the last."""
    message = not_found_message(storage.parent("/list.csv"), ["no-such-folder/1.jpg"])
    assert "looked for as /no-such-folder/1.jpg; / holds" in message


def test_a_list_written_for_a_folder_above_says_below_which_its_files_are(folder: Path):
    """Paths are relative to the list; the folder that they fit is named."""
    with pytest.raises(ConfigError, match=f"; below {folder} it is there"):
        listing(folder, text("path,label"), "img/list.csv")
