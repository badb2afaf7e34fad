"""The door to storage, on local disk: whole writes, listings in order, paths."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmclf import storage


def _all_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_written_is_read(tmp_path: Path):
    """Bytes and JSON come back as they were, missing folders are made, and a second write replaces the first."""
    place = str(tmp_path / "a" / "b" / "c.bin")
    storage.write_bytes(place, b"\x00\xff first")
    storage.write_bytes(place, b"second")
    assert storage.read_bytes(place) == b"second"
    value = {"x": [1, 2.5, None, True], "ü": "药"}
    storage.write_json(str(tmp_path / "v.json"), value)
    assert storage.read_json(str(tmp_path / "v.json")) == value
    assert _all_files(tmp_path) == ["a/b/c.bin", "v.json"]


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
@pytest.mark.parametrize("before", [None, b"before"])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, before: bytes | None
):
    """The disk fills up at any step of a write: the old file or none is there, never a part of the new one."""
    place = tmp_path / "file.bin"
    if before is not None:
        place.write_bytes(before)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    content: bytes = b"after"
    if broken == "write":
        content = memoryview(b"x" * 8)[::2]  # type: ignore[assignment]  # not contiguous: the file refuses to take it
    elif broken == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises((OSError, BufferError)):
        storage.write_bytes(str(place), content)
    monkeypatch.undo()
    assert _all_files(tmp_path) == ([] if before is None else ["file.bin"])
    assert before is None or place.read_bytes() == before


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """While the new content is written and until it is renamed, the old one stands in the place."""
    place = tmp_path / "file.bin"
    place.write_bytes(b"old")
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append(place.read_bytes()), fsync(number)))
    storage.write_bytes(str(place), b"new" * 1000)
    assert seen == [b"old"]
    assert place.read_bytes() == b"new" * 1000


def test_json_without_a_finite_number_is_not_written(tmp_path: Path):
    """NaN is no JSON; the file is not begun."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(str(tmp_path / "v.json"), {"loss": math.nan})
    assert _all_files(tmp_path) == []


def test_a_listing_is_sorted_and_goes_all_the_way_down(tmp_path: Path):
    """Every file at any depth, by path, with its size and time, and no folder."""
    names = ["b/2.txt", "a/deep/er/1.txt", "z.txt", "a/0.txt", "B.txt"]
    for size, name in enumerate(names):
        storage.write_bytes(str(tmp_path / name), b"x" * size)
    (tmp_path / "empty").mkdir()
    found = list(storage.list_files(str(tmp_path)))
    assert [entry.location for entry in found] == sorted(str(tmp_path / name) for name in names)
    sizes = {str(tmp_path / name): size for size, name in enumerate(names)}
    for entry in found:
        assert entry.size_bytes == sizes[entry.location] == len(storage.read_bytes(entry.location))
        assert entry.mtime_ns == os.stat(entry.location).st_mtime_ns


def test_a_listing_of_nothing_is_refused(tmp_path: Path):
    """A folder that is not there, and a file in its place, are told apart."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        list(storage.list_files(str(tmp_path / "none")))
    with pytest.raises(NotADirectoryError):
        list(storage.list_files(str(tmp_path / "file")))


def test_folders_are_those_directly_below(tmp_path: Path):
    """Sorted names, no files, nothing deeper; none where nothing stands."""
    for name in ("b/deep", "a", "c"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"")
    assert storage.list_folders(str(tmp_path)) == ["a", "b", "c"]
    assert storage.list_folders(str(tmp_path / "none")) == []


def test_files_and_folders_are_told_apart(tmp_path: Path):
    """A folder exists but is no file; what is not there is neither."""
    (tmp_path / "file").write_bytes(b"")
    places = [str(tmp_path), str(tmp_path / "file"), str(tmp_path / "none")]
    assert [storage.exists(place) for place in places] == [True, True, False]
    assert [storage.is_file(place) for place in places] == [False, True, False]


def test_deleting_is_of_one_kind_and_may_be_repeated(tmp_path: Path):
    """A file goes by `delete_file`, a folder with all below it by `delete_folder`; a second time nothing happens."""
    for name in ("a/1", "a/b/2", "c"):
        storage.write_bytes(str(tmp_path / name), b"")
    storage.delete_file(str(tmp_path / "a"))  # a folder is no file
    assert _all_files(tmp_path) == ["a/1", "a/b/2", "c"]
    for _ in range(2):
        storage.delete_file(str(tmp_path / "c"))
        storage.delete_folder(str(tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("a", "b"), "a/b"),
        (("a/", "/b/", "c"), "a/b/c"),
        (("/", "b"), "/b"),
        (("s3://bucket/", "b", "c.json"), "s3://bucket/b/c.json"),
        (("s3://bucket", "b/c"), "s3://bucket/b/c"),
        (("a",), "a"),
    ],
)
def test_parts_are_joined_by_single_slashes(parts: tuple[str, ...], expected: str):
    """Slashes that parts bring along do not double."""
    assert storage.join(*parts) == expected


@given(st.lists(st.text("ab.-", min_size=1), min_size=1, max_size=4))
def test_joining_is_associative(parts: list[str]):
    """A path put together in one go and part by part is the same."""
    step_by_step = "root"
    for part in parts:
        step_by_step = storage.join(step_by_step, part)
    assert storage.join("root", *parts) == step_by_step


def test_an_absolute_path_does_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Relative paths, ~ and file:// become absolute paths; a URI stays as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.absolute("runs") == str(tmp_path / "runs")
    assert storage.absolute("~/runs") == "/home/someone/runs"
    assert storage.absolute("file:///data/x") == "/data/x"
    assert storage.absolute("s3://bucket/x") == "s3://bucket/x"
    storage.write_bytes("runs/x.txt", b"here")
    assert storage.read_bytes(f"file://{tmp_path}/runs/x.txt") == b"here"


def test_a_uri_is_remote_and_a_path_is_not():
    """file:// is this machine."""
    places = {"s3://b/k": True, "gs://b/k": True, "/a/b": False, "a": False, "file:///a": False, "C:/x": False}
    assert {place: storage.is_remote(place) for place in places} == places
