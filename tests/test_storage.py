"""The door to storage: what holds for local disk and object stores alike, then what holds for local disk and paths."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmclf import storage

_ODD_NAMES = [
    "two words.txt", "ä/ö 药.txt", "a#b?c=d&e.txt", "50%.txt", "%20.txt", "a+b.txt", "it's (1) [2] {3}.txt",
    "~$=@!;,.txt", "..hidden..txt", 'quo"te|<x>.txt', "back\\slash.txt", "star*.txt", "a:b^`.txt",
]  # fmt: skip


def _all_files(root: str) -> list[str]:
    try:
        return [entry.location[len(root) + 1 :] for entry in storage.list_files(root)]
    except FileNotFoundError:
        return []


def _large() -> bytes:
    return np.random.default_rng(0).bytes(20_000_003)


def test_what_is_written_is_read(root: str):
    """Bytes and JSON come back as they were, missing folders are made, and a second write replaces the first."""
    place = storage.join(root, "a/b/c.bin")
    storage.write_bytes(place, b"\x00\xff first")
    storage.write_bytes(place, b"second")
    assert storage.read_bytes(place) == b"".join(storage.read_chunks(place)) == b"second"
    value = {"x": [1, 2.5, None, True], "ü": "药"}
    storage.write_json(storage.join(root, "v.json"), value)
    assert storage.read_json(storage.join(root, "v.json")) == value
    assert _all_files(root) == ["a/b/c.bin", "v.json"]


def test_an_empty_file_is_a_file(root: str, tmp_path: Path):
    """Nothing as content is not the same as no file."""
    place = storage.join(root, "empty")
    storage.write_bytes(place, b"")
    assert storage.is_file(place)
    assert storage.read_bytes(place) == b"".join(storage.read_chunks(place)) == b""
    storage.download(place, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b""
    assert [(entry.location, entry.size_bytes) for entry in storage.list_files(root)] == [(place, 0)]


def test_what_is_not_there_cannot_be_read(root: str, tmp_path: Path):
    """Every way of reading raises FileNotFoundError with the file's name, also where a folder stands."""
    storage.write_bytes(storage.join(root, "folder/file"), b"")
    for place in (storage.join(root, "none.bin"), storage.join(root, "no/such/folder/none.bin")):
        for read in (storage.read_bytes, lambda place: list(storage.read_chunks(place))):
            with pytest.raises(FileNotFoundError, match=r"none\.bin"):
                read(place)
        with pytest.raises(FileNotFoundError, match=r"none\.bin"):
            storage.download(place, tmp_path / "copy")
    with pytest.raises(OSError):
        storage.read_bytes(storage.join(root, "folder"))


def test_json_without_a_finite_number_is_not_written(root: str):
    """NaN is no JSON; the file is not begun."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(storage.join(root, "v.json"), {"loss": math.nan})
    assert _all_files(root) == []


def test_a_large_file_is_read_by_every_way(root: str, tmp_path: Path):
    """20 MB, written from memory and from a file, come back whole, in pieces, as a download and as a local file."""
    content, source, done = _large(), tmp_path / "source.bin", []
    source.write_bytes(content)
    for place in (storage.join(root, "memory.bin"), storage.join(root, "file.bin")):
        if place.endswith("memory.bin"):
            storage.write_bytes(place, content)
        else:
            storage.copy_file(source, place)
        assert storage.read_bytes(place) == content
        chunks = list(storage.read_chunks(place))
        assert len(chunks) > 1
        assert b"".join(chunks) == content
        storage.download(place, tmp_path / "copy.bin", progress=done.append)
        assert (tmp_path / "copy.bin").read_bytes() == content
        with storage.local_file(place) as path:
            assert path.read_bytes() == content
            assert path.name == place.rsplit("/", 1)[1]
        assert path.exists() != storage.is_remote(place)
    half = done[: len(done) // 2]
    assert half == sorted(set(half)) == done[len(done) // 2 :]
    assert half[-1] == len(content)


def test_a_listing_is_sorted_and_goes_all_the_way_down(root: str):
    """Every file at any depth, by path, with its size and time, and no folder."""
    names = ["b/2.txt", "a/deep/er/1.txt", "z.txt", "a/0.txt", "B.txt", "a-b/3.txt", "a.txt"]
    for size, name in enumerate(names):
        storage.write_bytes(storage.join(root, name), b"x" * size)
    found = list(storage.list_files(root))
    assert [entry.location for entry in found] == sorted(storage.join(root, name) for name in names)
    sizes = {storage.join(root, name): size for size, name in enumerate(names)}
    for entry in found:
        assert entry.size_bytes == sizes[entry.location] == len(storage.read_bytes(entry.location))
        assert abs(entry.mtime_ns / 1e9 - time.time()) < 60
    assert _all_files(storage.join(root, "a")) == ["0.txt", "deep/er/1.txt"]  # and not those of a-b
    assert list(storage.list_files(root + "/")) == found


def test_a_listing_of_nothing_is_refused(root: str):
    """A folder that is not there, and a file in its place, are told apart."""
    storage.write_bytes(storage.join(root, "file"), b"")
    with pytest.raises(FileNotFoundError, match="none"):
        list(storage.list_files(storage.join(root, "none")))
    with pytest.raises(NotADirectoryError, match="file"):
        list(storage.list_files(storage.join(root, "file")))
    with pytest.raises(FileNotFoundError):
        list(storage.list_files(storage.join(root, "fil")))  # the beginning of a name is no folder


def test_folders_are_those_directly_below(root: str):
    """Sorted names, no files, nothing deeper; none where nothing stands."""
    for name in ("b/deep/x", "a/x", "a/y", "c d/x", "file"):
        storage.write_bytes(storage.join(root, name), b"")
    assert storage.list_folders(root) == ["a", "b", "c d"]
    assert storage.list_folders(storage.join(root, "b")) == ["deep"]
    assert storage.list_folders(storage.join(root, "a")) == []
    assert storage.list_folders(storage.join(root, "none")) == []
    assert storage.list_folders(storage.join(root, "file")) == []


def test_files_and_folders_are_told_apart(root: str):
    """A folder exists but is no file; what is not there is neither."""
    storage.write_bytes(storage.join(root, "folder/file"), b"")
    places = [storage.join(root, name) for name in ("folder", "folder/file", "none", "fold", "folder/file/none")]
    assert [storage.exists(place) for place in places] == [True, True, False, False, False]
    assert [storage.is_file(place) for place in places] == [False, True, False, False, False]


def test_deleting_is_of_one_kind_and_may_be_repeated(root: str):
    """A file goes by `delete_file`, a folder with all below it by `delete_folder`; a second time nothing happens."""
    for name in ("a/1", "a/b/2", "ab", "c"):
        storage.write_bytes(storage.join(root, name), b"")
    storage.delete_file(storage.join(root, "a"))  # a folder is no file
    storage.delete_folder(storage.join(root, "c"))  # and a file no folder
    assert _all_files(root) == ["a/1", "a/b/2", "ab", "c"]
    for _ in range(2):
        storage.delete_file(storage.join(root, "c"))
        storage.delete_folder(storage.join(root, "a"))
        assert _all_files(root) == ["ab"]


def test_odd_names_are_names(root: str):
    """Blanks, umlauts, and what means something in URLs and shells: written, listed, read and deleted as they are."""
    for name in _ODD_NAMES:
        storage.write_bytes(storage.join(root, "dir ä#?", name), name.encode())
    folder = storage.join(root, "dir ä#?")
    assert _all_files(folder) == sorted(_ODD_NAMES)
    for entry in storage.list_files(folder):
        name = entry.location[len(folder) + 1 :]
        assert storage.is_file(entry.location)
        assert storage.read_bytes(entry.location) == b"".join(storage.read_chunks(entry.location)) == name.encode()
        with storage.local_file(entry.location) as path:
            assert path.read_bytes() == name.encode()
    assert storage.list_folders(root) == ["dir ä#?"]
    for name in _ODD_NAMES:
        storage.delete_file(storage.join(folder, name))
    assert _all_files(root) == []


def test_the_sign_of_a_complete_copy_comes_last(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder is copied with all its files; when the last one is seen, all others stand there."""
    source = tmp_path / "source"
    names = ["a.txt", "deep/er/b.txt", "done.json", *(f"many/{number:03}.bin" for number in range(40))]
    for name in names:
        storage.write_bytes(str(source / name), name.encode())
    order, copy_file = [], storage.copy_file

    def noting(path: Path, location: str) -> None:
        copy_file(path, location)
        order.append(path.name)

    monkeypatch.setattr(storage, "copy_file", noting)
    storage.upload_folder(source, storage.join(root, "copy"), last="done.json")
    assert order[-1] == "done.json"
    assert _all_files(storage.join(root, "copy")) == sorted(names)
    assert all(storage.read_bytes(storage.join(root, "copy", name)) == name.encode() for name in names)
    storage.upload_folder(source, storage.join(root, "again"))
    assert _all_files(storage.join(root, "again")) == sorted(names)


def test_a_copy_that_fails_gives_no_sign_of_being_complete(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One file of many cannot be written: the error is raised, and the last file is not."""
    source = tmp_path / "source"
    for name in ("a.txt", "b.txt", "done.json"):
        storage.write_bytes(str(source / name), b"")
    copy_file = storage.copy_file

    def failing(path: Path, location: str) -> None:
        if path.name == "b.txt":
            raise OSError(28, "No space left on device")
        copy_file(path, location)

    monkeypatch.setattr(storage, "copy_file", failing)
    with pytest.raises(OSError, match="No space left"):
        storage.upload_folder(source, storage.join(root, "copy"), last="done.json")
    assert _all_files(storage.join(root, "copy")) == ["a.txt"]


def test_a_file_is_made_only_once(root: str):
    """With no version, a write goes through only where no file stands."""
    place = storage.join(root, "new/state.json")
    assert storage.read_versioned(place) is None
    version = storage.compare_and_swap(place, b"first", None)
    assert version
    assert storage.compare_and_swap(place, b"second", None) is None
    found = storage.read_versioned(place)
    assert found is not None
    assert (found.content, found.version) == (b"first", version)
    assert abs(found.changed_s - time.time()) < 60


def test_a_file_is_replaced_only_as_it_was_read(root: str):
    """A version that was written over, or deleted, is good for nothing; the new one is."""
    place = storage.join(root, "state.json")
    first = storage.compare_and_swap(place, b"1", None)
    second = storage.compare_and_swap(place, b"2", first)
    assert second not in (None, first)
    assert storage.compare_and_swap(place, b"stale", first) is None
    storage.write_bytes(place, b"3")  # by somebody who does not ask
    assert storage.compare_and_swap(place, b"stale", second) is None
    found = storage.read_versioned(place)
    assert found is not None
    assert found.content == b"3"
    third = storage.compare_and_swap(place, b"4", found.version)
    assert third
    storage.delete_file(place)
    assert storage.compare_and_swap(place, b"5", third) is None
    assert storage.read_versioned(place) is None


@pytest.mark.parametrize("stands", [False, True])
def test_of_many_writers_at_once_one_wins(root: str, stands: bool):
    """Eight threads that read the same state write at once: one gets a version, and its content stands there."""
    for trial in range(10):
        place = storage.join(root, f"{trial}.json")
        if stands:
            storage.write_bytes(place, b"before")
        found = storage.read_versioned(place)
        version, start = found.version if found else None, threading.Barrier(8)

        def write(number: int, place: str = place, version: str | None = version, start: object = start) -> str | None:
            start.wait()
            return storage.compare_and_swap(place, f"writer {number}".encode(), version)

        with ThreadPoolExecutor(8) as pool:
            versions = list(pool.map(write, range(8)))
        winners = [number for number, version in enumerate(versions) if version]
        assert len(winners) == 1
        after = storage.read_versioned(place)
        assert after is not None
        assert (after.content, after.version) == (f"writer {winners[0]}".encode(), versions[winners[0]])


def test_many_writers_in_turn_lose_nothing(root: str):
    """Eight threads add to one number, each by reading and writing until it goes through: the sum is right."""
    place = storage.join(root, "count.json")
    storage.write_json(place, {"count": 0})

    def add(writer: int) -> None:
        for _ in range(1000):
            found = storage.read_versioned(place)
            value = {"count": json.loads(found.content)["count"] + 1, "writer": writer} if found else None
            if found and storage.compare_and_swap(place, json.dumps(value).encode(), found.version):
                return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert storage.read_json(place)["count"] == 40


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
    assert _all_files(str(tmp_path)) == ([] if before is None else ["file.bin"])
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


def test_empty_folders_of_a_disk_are_no_files(tmp_path: Path):
    """A folder without files lists as nothing, is told by `list_folders`, and goes with `delete_folder`."""
    (tmp_path / "root" / "empty").mkdir(parents=True)
    root = str(tmp_path / "root")
    assert list(storage.list_files(root)) == []
    assert storage.list_folders(root) == ["empty"]
    assert storage.exists(storage.join(root, "empty"))
    storage.delete_folder(root)
    assert not storage.exists(root)


def test_a_folder_that_several_processes_delete_at_once_is_gone(tmp_path: Path):
    """Two jobs that find the same work complete both clear it away."""
    for _ in range(5):
        for number in range(300):
            (tmp_path / "parts" / str(number)).mkdir(parents=True)
            (tmp_path / "parts" / str(number) / "file").touch()
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(storage.delete_folder, [f"{tmp_path}/parts"] * 4))
        assert not (tmp_path / "parts").exists()


def test_the_nearest_folder_of_a_name_that_no_disk_takes_is_the_one_around_it(tmp_path: Path):
    assert storage.nearest_existing(f"{tmp_path}/{300 * 'a'}/b") == tmp_path


def test_times_of_a_disk_are_those_of_its_files(tmp_path: Path):
    """A listing's times are the file system's, to the nanosecond."""
    (tmp_path / "file").write_bytes(b"")
    os.utime(tmp_path / "file", ns=(0, 1_700_000_000_123_456_789))
    assert [entry.mtime_ns for entry in storage.list_files(str(tmp_path))] == [1_700_000_000_123_456_789]


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


def test_a_file_that_goes_while_a_folder_is_listed_is_left_out(tmp_path: Path):
    """Another process writes and renames files beside those that are listed; the listing does not end for it."""
    for number in range(200):
        (tmp_path / f"stays-{number}").write_bytes(b"x")
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            for number in range(20):
                storage.write_bytes(f"{tmp_path}/goes-{number}", b"y")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(100):
            names = [entry.location.rsplit("/", 1)[-1] for entry in storage.list_files(str(tmp_path))]
            assert sum(name.startswith("stays") for name in names) == 200
    finally:
        ended.set()
        thread.join()
