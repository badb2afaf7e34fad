"""The listing of kept activations, what is chosen to go, its deletion, and jobs/activations.py as a user runs it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmclf import storage
from pharmclf.config import AugmentConfig, RunConfig
from pharmclf.core.hashing import sha256_bytes
from pharmclf.data.manifest import Manifest
from pharmclf.feature_cache.cache_key import cache_location, cache_root, key_parts
from pharmclf.feature_cache.inventory import (
    CacheEntry,
    delete_entries,
    entries_table,
    list_entries,
    select_for_eviction,
)
from pharmclf.feature_cache.shards import INDEX_FILE, USED_FILE, ShardLayout, shard_name, write_index
from pharmclf.storage import lease
from pharmclf.storage.lease import Lease

REPOSITORY = Path(__file__).parents[2]
DAY_S = 86400.0
NOW_S = 1_800_000_000.0


def keep(root: str, seed: int = 0, *, used_s: float | None = None, index: bool = True, **settings: Any) -> str:
    """Activations of three training images and one of validation, as a run leaves them -> their location."""
    rows = [(f"/i/{number}.jpg", f"{number:064x}", "train" if number else "validation", "ok") for number in range(4)]
    manifest = Manifest(pd.DataFrame(rows, columns=["path", "sha256", "split", "status"]), ("one", "two"), "/i")
    config = RunConfig(**{"seed": seed, "image_size": 64, "augment": AugmentConfig(views=2)} | settings)
    parts = key_parts(config, manifest, 2, "imagenet", "float32")
    location, layout = cache_location(root, parts), ShardLayout.of(config, manifest, (2, 2, 8))
    found = {}
    for section in layout.sections:
        content = bytes(layout.shard_bytes(section, 0))
        found[section.name, 0] = shard_name(section.name, 0, sha256_bytes(content))
        storage.write_bytes(storage.join(location, found[section.name, 0]), content)
    if index:
        write_index(location, layout, parts, found, 1.0)
    if used_s is not None:
        storage.write_json(storage.join(location, USED_FILE), {"used_s": used_s, "run": f"run{seed}"})
    return location


def key_of(location: str) -> str:
    return location.rsplit("/", 1)[1]


def by_key(root: str) -> dict[str, CacheEntry]:
    return {kept.key: kept for kept in list_entries(root)}


def entry(key: str, age_s: float, size_bytes: int, **about: Any) -> CacheEntry:
    return CacheEntry(key, f"/storage/activations/{key}", size_bytes, complete=True, used_s=NOW_S - age_s, **about)


@pytest.fixture
def computing(root: str) -> Iterator[str]:
    """Activations that this process is computing."""
    location = keep(root, 99, index=False)
    held = Lease.acquire(location)
    yield location
    held.release()


def test_the_listing_tells_what_is_kept(root: str):
    """Everything that the index knows, the sum of the files' sizes, and the last use."""
    location = keep(root, 7, used_s=NOW_S, backbone="resnet50", feature_cache_dtype="float32")
    size = sum(file.size_bytes for file in storage.list_files(location))
    assert size > 7 * 32 * 4
    assert list_entries(root) == [
        CacheEntry(
            key=key_of(location),
            location=location,
            size_bytes=size,
            complete=True,
            used_s=NOW_S,
            run="run7",
            backbone="resnet50",
            image_size=64,
            cut=2,
            dtype="float32",
            views=2,
            num_views=7,
        )
    ]


def test_without_augmentation_there_is_one_view(tmp_path: Path):
    """The key then holds no augmentation at all."""
    still = AugmentConfig(rotation_deg=0, shift=0, shear=0, zoom=0, horizontal_flip=False)
    keep(str(tmp_path), augment=still)
    assert [(kept.views, kept.num_views) for kept in list_entries(str(tmp_path))] == [(1, 4)]


def test_the_most_recently_used_comes_first(root: str):
    """Whatever the order in which they were made."""
    places = {used_s: keep(root, seed, used_s=used_s) for seed, used_s in enumerate((5.0, 9.0, 1.0, 7.0))}
    assert [kept.key for kept in list_entries(root)] == [key_of(places[used_s]) for used_s in (9.0, 7.0, 5.0, 1.0)]


@pytest.mark.parametrize("used", [None, b"{", b"[]", b"{}", b'{"used_s": "never"}', b'{"used_s": NaN}', b"\xff"])
def test_where_no_use_is_recorded_the_last_change_counts(tmp_path: Path, used: bytes | None):
    """Also where the record cannot be read: the activations are listed all the same."""
    location = Path(keep(str(tmp_path)))
    if used is not None:
        (location / USED_FILE).write_bytes(used)
    for number, path in enumerate(sorted(location.iterdir())):
        os.utime(path, (1000 + number, 1000 + number))
    newest = 1000 + len(list(location.iterdir())) - 1
    assert [(kept.used_s, kept.run, kept.complete) for kept in list_entries(str(tmp_path))] == [(newest, "", True)]


def test_the_last_change_is_told_by_every_storage(root: str):
    """In seconds since 1970."""
    keep(root)
    assert abs(list_entries(root)[0].used_s - time.time()) < 60


@pytest.mark.parametrize(
    "index", [None, b'{"parts": ', b"[]", b"{}", b'{"parts": 1, "layout": 2, "files": 3, "bytes": 4}']
)
def test_without_a_readable_index_they_are_incomplete(root: str, index: bytes | None):
    """Interrupted, cut short, or of another version: listed with their size, so that they can be deleted."""
    location = keep(root, 3, index=False, used_s=NOW_S)
    if index is not None:
        storage.write_bytes(storage.join(location, INDEX_FILE), index)
    kept = list_entries(root)[0]
    assert kept == CacheEntry(key_of(location), location, kept.size_bytes, complete=False, used_s=NOW_S, run="run3")
    assert kept.size_bytes > 7 * 32 * 2


def test_where_nothing_is_kept_the_list_is_empty(root: str):
    """Nothing there, runs only, and folders of other names, which are somebody else's."""
    assert list_entries(root) == list_entries(storage.join(root, "no", "such")) == []
    storage.write_json(storage.join(root, "demo", "run.json"), {})
    storage.write_bytes(storage.join(cache_root(root), "mine", "notes.txt"), b"mine")
    storage.write_bytes(storage.join(cache_root(root), "f" * 32), b"a file")
    assert list_entries(root) == []


def test_a_folder_that_goes_meanwhile_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Deleted by another process between the list of folders and the look into them."""
    stays, goes = keep(str(tmp_path), 1), keep(str(tmp_path), 2)
    list_folders = storage.list_folders

    def list_then_lose(location: str) -> list[str]:
        names = list_folders(location)
        storage.delete_folder(goes)
        return names

    monkeypatch.setattr(storage, "list_folders", list_then_lose)
    assert [kept.location for kept in list_entries(str(tmp_path))] == [stays]


def test_what_was_not_used_for_so_long_goes():
    """The oldest first; a clock that is ahead makes nothing older."""
    kept = [entry(key, days * DAY_S, 100) for key, days in (("a", -1), ("b", 0), ("c", 29.9), ("d", 30), ("e", 31))]
    assert [gone.key for gone in select_for_eviction(kept, NOW_S, 30 * DAY_S, None)] == ["e", "d"]
    assert [gone.key for gone in select_for_eviction(kept, NOW_S, 0.0, None)] == ["e", "d", "c", "b", "a"]
    assert select_for_eviction(kept, NOW_S, None, None) == []


def test_the_least_recently_used_go_until_the_rest_fits():
    """No more of them than needed; with an age, what that leaves is counted."""
    kept = [entry("a", 1, 100), entry("b", 2, 50), entry("c", 3, 10), entry("d", 4, 200)]
    goes = {
        size: "".join(gone.key for gone in select_for_eviction(kept, NOW_S, None, size))
        for size in (360, 359, 160, 149, 0)
    }
    assert goes == {360: "", 359: "d", 160: "d", 149: "dcb", 0: "dcba"}
    assert [gone.key for gone in select_for_eviction(kept, NOW_S, 3.0, 160)] == ["d", "c"]
    assert [gone.key for gone in select_for_eviction(kept, NOW_S, 4.0, 100)] == ["d", "c", "b"]


@given(
    st.lists(st.tuples(st.floats(-100, 1000), st.integers(0, 1000)), max_size=12),
    st.none() | st.floats(0, 1000),
    st.none() | st.floats(0, 5000),
)
def test_what_goes_is_right_for_any_ages_and_sizes(
    made: list[tuple[float, int]], older_than_s: float | None, down_to_bytes: float | None
):
    """All that is too old, then just enough; never something used later than what stays."""
    kept = [entry(f"{number:02}", age_s, size) for number, (age_s, size) in enumerate(made)]
    gone = select_for_eviction(kept, NOW_S, older_than_s, down_to_bytes)
    rest = [one for one in kept if one not in gone]
    old = [one for one in kept if older_than_s is not None and max(0.0, NOW_S - one.used_s) >= older_than_s]
    assert set(old) <= set(gone)
    assert all(one.used_s <= other.used_s for one in gone for other in rest)
    size = sum(one.size_bytes for one in rest)
    assert down_to_bytes is None or size <= down_to_bytes
    for_size = [one for one in gone if one not in old]
    assert not for_size or (down_to_bytes is not None and size + for_size[-1].size_bytes > down_to_bytes)


def test_what_is_deleted_is_gone_and_nothing_else(root: str, monkeypatch: pytest.MonkeyPatch):
    """The whole folder, with what belongs to its lease; no renewal brings a file back."""
    monkeypatch.setattr(lease, "_RENEW_S", 0.01)
    first, second, third = (keep(root, seed, used_s=float(seed)) for seed in (3, 2, 1))
    storage.write_json(storage.join(root, "demo", "run.json"), {})
    kept = list_entries(root)
    assert delete_entries(kept[1:]) == (kept[1:], [])
    time.sleep(0.1)
    assert not storage.exists(second)
    assert not storage.exists(third)
    assert list_entries(root) == kept[:1]
    assert kept[0].location == first
    assert storage.is_file(storage.join(root, "demo", "run.json"))
    assert delete_entries([]) == ([], [])


def test_what_is_being_computed_is_left_alone(root: str, computing: str):
    """The reason names the folder and who computes it; the others go."""
    other = keep(root, 1)
    before = {file.location: file.size_bytes for file in storage.list_files(computing)}
    deleted, (reason,) = delete_entries(list_entries(root))
    assert [gone.location for gone in deleted] == [other]
    assert f"{computing} is being written by process {os.getpid()} on {socket.gethostname()}" in reason
    assert {file.location: file.size_bytes for file in storage.list_files(computing)} == before


def test_what_an_ended_process_left_can_be_deleted(root: str):
    """Its lease stands and nobody holds it."""
    location = keep(root, 1, index=False)
    code = "import sys; from pharmclf.storage.lease import Lease; Lease.acquire(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, location], check=True, timeout=60)
    assert storage.is_file(storage.join(location, "lease.json"))
    assert [gone.location for gone in delete_entries(list_entries(root))[0]] == [location]
    assert not storage.exists(location)


def test_a_deletion_that_breaks_off_leaves_nothing_that_looks_complete(root: str, monkeypatch: pytest.MonkeyPatch):
    """The storage goes away before the folder does: without its index nobody trains on it, and nobody holds it."""
    location = keep(root, 1)

    def refuse(_: str) -> None:
        raise storage.StorageUnavailableError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete_folder", refuse)
        with pytest.raises(storage.StorageUnavailableError):
            delete_entries(list_entries(root))
    assert [(kept.location, kept.complete) for kept in list_entries(root)] == [(location, False)]
    assert len(delete_entries(list_entries(root))[0]) == 1


def test_what_others_own_does_not_stop_the_deletion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is left with the reason, and the rest goes."""
    mine, theirs = keep(str(tmp_path), 1), keep(str(tmp_path), 2)
    write_if = storage.compare_and_swap

    def refuse(location: str, content: bytes, version: str | None) -> str | None:
        if location.startswith(theirs):
            raise PermissionError(13, "Permission denied", location)
        return write_if(location, content, version)

    monkeypatch.setattr(storage, "compare_and_swap", refuse)
    deleted, (reason,) = delete_entries(list_entries(str(tmp_path)))
    assert [gone.location for gone in deleted] == [mine]
    assert "Permission denied" in reason
    assert theirs in reason


def test_the_table_is_aligned_and_ends_with_the_sum():
    """A heading, a line for each, "-" for what is not known."""
    about = {"backbone": "resnet50", "image_size": 224, "cut": 0, "views": 1, "dtype": "float16", "run": "tablets"}
    kept = [
        entry("a" * 32, 3.5 * DAY_S, 1_500_000_000, **about),
        CacheEntry("b" * 32, "/b", 999, complete=False, used_s=NOW_S),
    ]
    heading, first, second, last = entries_table(kept, NOW_S).splitlines()
    columns = ["key", "backbone", "image size", "cut", "views", "dtype", "size", "last used", "run", "state"]
    starts = [heading.index(f"  {name}") + 2 if name != "key" else 0 for name in columns]

    def cells(line: str) -> list[str]:
        return [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]

    assert cells(heading) == columns
    assert cells(first) == [
        "a" * 32, "resnet50", "224", "0", "1", "float16", "1.5 GB", "3 d ago", "tablets", "complete",
    ]  # fmt: skip
    assert cells(second) == ["b" * 32, "-", "-", "-", "-", "-", "999 B", "0 s ago", "-", "incomplete"]
    assert last == "2 in all, 1.5 GB"
    assert entries_table([], NOW_S).splitlines()[-1] == "0 in all, 0 B"


def run_job(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "jobs" / "activations.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_the_job_lists_and_deletes_what_is_asked_for(root: str, computing: str):
    """Without a flag it only lists; then the old ones go, and then all but what is being computed."""
    now = time.time()
    new, old, older = (keep(root, days, used_s=now - days * DAY_S) for days in (1, 40, 50))
    listed = run_job(f"--storage={root}")
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [
        "key", *(key_of(place) for place in (computing, new, old, older)), "4",
    ]  # fmt: skip
    assert "  1 d ago  " in listed.stdout
    assert "  run40  " in listed.stdout

    aged = run_job(f"--storage={root}", "--delete-older-than=30d")
    assert aged.returncode == 0, aged.stderr
    lines = aged.stdout.splitlines()
    assert [line.split(",")[0] for line in lines[:2]] == [f"deleted: {key_of(older)}", f"deleted: {key_of(old)}"]
    assert lines[0].endswith(" kB")
    assert [line.split()[0] for line in lines[2:]] == ["key", key_of(computing), key_of(new), "2"]
    assert set(by_key(root)) == {key_of(computing), key_of(new)}

    rest = run_job(f"--storage={root}", "--delete-down-to=0GB")
    assert rest.returncode == 0, rest.stderr
    lines = rest.stdout.splitlines()
    assert lines[0].startswith(f"deleted: {key_of(new)}, ")
    assert lines[1].startswith(f"left: {computing} is being written by process {os.getpid()} on ")
    assert lines[-1].startswith("1 in all, ")
    assert set(by_key(root)) == {key_of(computing)}
    assert aged.stderr == rest.stderr == ""


def test_the_job_says_when_nothing_is_kept(tmp_path: Path):
    """A storage with runs alone is no error, with or without something to delete."""
    storage.write_json(f"{tmp_path}/demo/run.json", {})
    for arguments in ([], ["--delete-older-than=0s", "--delete-down-to=0GB"]):
        done = run_job(f"--storage={tmp_path}", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(f" in {tmp_path}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--delete-older-than=30"], "--delete-older-than: received '30', expected a duration"),
        (["--delete-down-to=-1GB"], "--delete-down-to: received '-1GB', expected a size"),
        (["--delete-older-than=1d", "--delete-down-to=nan"], "--delete-down-to: received 'nan'"),
        (["--storage=no/such"], "no/such: nothing there"),
        (["--no-such-flag=1"], "no-such-flag"),
    ],
)
def test_bad_input_ends_with_2_and_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
):
    """The error names what was received, without a traceback."""
    monkeypatch.chdir(tmp_path)
    keep(str(tmp_path), used_s=1.0)
    done = run_job(*([] if "--storage=no/such" in arguments else [f"--storage={tmp_path}"]), *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert len(list_entries(str(tmp_path))) == 1


@pytest.mark.s3
def test_a_storage_that_refuses_ends_with_2(bucket: str, monkeypatch: pytest.MonkeyPatch):
    """No such bucket, and keys that are not good for it: each named, without a traceback."""
    absent = run_job("--storage=s3://no-such-bucket/prefix")
    assert absent.returncode == 2, absent.stdout + absent.stderr
    assert "--storage s3://no-such-bucket/prefix: " in absent.stderr
    assert "no bucket" in absent.stderr
    keep(bucket)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    refused = run_job(f"--storage={bucket}")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert f"--storage {bucket}: " in refused.stderr
    assert "access denied" in refused.stderr
    assert "Traceback" not in absent.stderr + refused.stderr
