"""The cache of remote shards on a node's disk: bounded, shared by processes, and whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.s3proxy import RESET, Fault, Request, Through

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.core.hashing import sha256_bytes
from pharmclf.feature_cache.local_cache import LocalCache
from pharmclf.feature_cache.shards import FeatureCacheUnavailableError

TICK_S = 0.02  # longer than the steps in which a file system counts time


def put(root: str, name: str, size: int = 1000, seed: int = 0) -> str:
    """A file of random bytes -> its location."""
    location = storage.join(root, "activations", "key", f"{name}.npy")
    storage.write_bytes(location, np.random.default_rng(seed).bytes(size))
    return location


def held(cache: LocalCache) -> list[str]:
    return sorted(path.stem for path in cache.folder.iterdir() if not path.name.startswith(".lock"))


def fetched(cache: LocalCache, location: str) -> Path:
    """The local copy of a file, which may be gone once others are fetched."""
    return cache.open(location, lambda path: path)


def fetch(cache: LocalCache, *locations: str) -> None:
    """One after the other, each visibly later than the one before."""
    for location in locations:
        fetched(cache, location)
        time.sleep(TICK_S)


def test_a_file_is_fetched_once(root: str, tmp_path: Path):
    """The copy is whole and has the file's name; afterwards the original is not asked for."""
    location = put(root, "a")
    content = storage.read_bytes(location)
    cache = LocalCache(tmp_path / "cache", 1e6)
    assert fetched(cache, location).read_bytes() == content
    storage.delete_file(location)
    again = fetched(LocalCache(tmp_path / "cache", 1e6), location)
    assert again.read_bytes() == content
    assert again == tmp_path / "cache" / "a.npy"


def test_a_copy_that_is_dropped_is_fetched_again(root: str, tmp_path: Path):
    """As a damaged one; dropping what is not there is no error."""
    location = put(root, "a")
    cache = LocalCache(tmp_path / "cache", 1e6)
    cache.evict(location)
    fetched(cache, location).write_bytes(b"damaged")
    cache.evict(location)
    assert held(cache) == []
    assert fetched(cache, location).read_bytes() == storage.read_bytes(location)


def test_the_least_recently_used_goes_first(root: str, tmp_path: Path):
    """A use counts, not only the fetch; no more goes than must."""
    cache = LocalCache(tmp_path / "cache", 3500)
    a, b, c, d = (put(root, name) for name in "abcd")
    large = put(root, "large", 2500)
    fetch(cache, a, b, c)
    assert held(cache) == ["a", "b", "c"]
    fetch(cache, a, d)
    assert held(cache) == ["a", "c", "d"]
    fetch(cache, large)
    assert held(cache) == ["d", "large"]


def test_a_file_larger_than_the_bound_is_given_and_stays_alone(root: str, tmp_path: Path):
    """A shard must be readable however small the cache; the next fetch takes its room back."""
    cache = LocalCache(tmp_path / "cache", 1500)
    large = put(root, "large", 5000)
    fetch(cache, put(root, "a"), large)
    assert held(cache) == ["large"]
    fetch(cache, put(root, "b"))
    assert held(cache) == ["b"]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 6000))
def test_the_bound_holds_for_any_order_of_fetches(order: list[int], limit_bytes: int):
    """After each fetch no more than the bound lies there, or the fetched file alone."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = [100 * (number + 1) for number in range(10)]
        places = [put(folder, str(number), size) for number, size in enumerate(sizes)]
        cache = LocalCache(Path(folder) / "cache", limit_bytes)
        for number in order:
            assert fetched(cache, places[number]).stat().st_size == sizes[number]
            there = held(cache)
            assert str(number) in there
            assert sum(sizes[int(name)] for name in there) <= limit_bytes or there == [str(number)]


def test_an_open_map_survives_the_eviction_of_its_file(root: str, tmp_path: Path):
    """What a reader has open is read to its end, though its name is gone."""
    array = np.random.default_rng(0).normal(size=(200, 1000)).astype(np.float16)
    source = tmp_path / "array.npy"
    np.save(source, array)
    location = storage.join(root, "array.npy")
    storage.copy_file(source, location)
    cache = LocalCache(tmp_path / "cache", 500_000)
    mapped = np.load(fetched(cache, location), mmap_mode="r", allow_pickle=False)
    fetch(cache, put(root, "other", 400_000))
    assert held(cache) == ["other"]
    assert np.array_equal(mapped, array)


def test_threads_fetch_what_they_ask_for(root: str, tmp_path: Path):
    """Eight at once over a cache that holds all: every copy is whole."""
    places = [put(root, f"{number}", 5000 + number, seed=number) for number in range(12)]
    cache = LocalCache(tmp_path / "cache", 1e6)
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda place: fetched(cache, place).read_bytes(), 3 * places))
    assert contents == 3 * [storage.read_bytes(place) for place in places]
    assert held(cache) == sorted(str(number) for number in range(12))


_FETCH = """
import sys
from pathlib import Path
from pharmclf.feature_cache.local_cache import LocalCache
from pharmclf.core.hashing import sha256_file
cache = LocalCache(Path(sys.argv[1]), 1e9)
print("ready", flush=True)
sys.stdin.readline()
print(cache.open(sys.argv[2], sha256_file), flush=True)
"""


def fetched_by_two(cache: Path, location: str) -> list[str]:
    """Two processes fetch a file at the same moment -> the sha256 of what each was given."""
    command = [sys.executable, "-c", _FETCH, str(cache), location]
    with contextlib.ExitStack() as stack:
        pair = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(2)
        ]
        for process in pair:
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in pair:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        return [process.communicate(timeout=60)[0].strip() for process in pair]


def test_two_processes_fetch_a_file_whole(root: str, tmp_path: Path):
    """Neither is given what the other has half written, and nothing but the copy is left."""
    location = put(root, "a", 20_000_003)
    sums = fetched_by_two(tmp_path / "cache", location)
    assert sums == 2 * [sha256_bytes(storage.read_bytes(location))]
    assert [path.name for path in (tmp_path / "cache").glob("[!.]*")] == ["a.npy"]


@pytest.mark.s3
def test_of_two_processes_one_fetches(bucket: str, through: Through, tmp_path: Path):
    """The other waits for it: the server is asked for each part of the file once."""
    location = put(bucket, "a", 20_000_003)
    proxy = through(lambda _: None)
    fetched_by_two(tmp_path / "cache", location)
    assert proxy.count(lambda request: request.method == "GET" and "a.npy" in request.target) == 3


@pytest.mark.s3
def test_a_fetch_that_breaks_off_leaves_nothing(bucket: str, through: Through, tmp_path: Path):
    """The server is gone after the first part of three: no part of the file is left, and later it is fetched whole."""
    location = put(bucket, "a", 20_000_003)
    down, parts = threading.Event(), []

    def choose(request: Request) -> Fault | None:
        parts.extend([request] if request.method == "GET" else [])
        return RESET if down.is_set() and len(parts) > 1 else None

    down.set()
    through(choose)
    cache = LocalCache(tmp_path / "cache", 1e9)
    with storage.timeout(1.0), pytest.raises(storage.StorageUnavailableError):
        fetched(cache, location)
    assert len(parts) > 1
    assert held(cache) == []
    down.clear()
    assert fetched(cache, location).read_bytes() == storage.read_bytes(location)


def test_what_is_not_there_leaves_nothing(root: str, tmp_path: Path):
    """The error names the file."""
    cache = LocalCache(tmp_path / "cache", 1e6)
    put(root, "a")
    with pytest.raises(FileNotFoundError, match=r"gone\.npy"):
        fetched(cache, storage.join(root, "activations", "key", "gone.npy"))
    assert held(cache) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the device that is always full")
def test_a_full_disk_is_told_from_other_errors(tmp_path: Path):
    """Activations are then not kept, and the message names the variable that moves the cache elsewhere."""
    location = put(str(tmp_path), "a")
    cache = LocalCache(tmp_path / "cache", 1e6)
    (cache.folder / "a.part").symlink_to("/dev/full")
    with pytest.raises(FeatureCacheUnavailableError, match="cache is full; PHARMCLF_STORAGE_CACHE may name") as caught:
        fetched(cache, location)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert held(cache) == []
    assert fetched(cache, location).read_bytes() == storage.read_bytes(location)


def test_the_environment_names_folder_and_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Gigabytes of 10^9 bytes; the folder is made, for its owner alone."""
    monkeypatch.setenv("PHARMCLF_STORAGE_CACHE", str(tmp_path / "deep" / "cache"))
    monkeypatch.setenv("PHARMCLF_STORAGE_CACHE_GB", "0.5")
    cache = LocalCache()
    assert cache.folder == tmp_path / "deep" / "cache"
    assert cache.limit_bytes == 5e8
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert LocalCache(tmp_path / "other").limit_bytes == 5e8


def test_without_a_bound_half_of_the_free_space_may_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the cache holds already counts as free, so that it does not shrink by being used."""
    monkeypatch.delenv("PHARMCLF_STORAGE_CACHE_GB", raising=False)
    (tmp_path / "a.npy").write_bytes(bytes(1000))
    limit = LocalCache(tmp_path).limit_bytes
    assert limit == pytest.approx(0.5 * (shutil.disk_usage(tmp_path).free + 1000), rel=0.1)
    os.truncate(tmp_path / "a.npy", 10**13)  # takes no space on disk
    assert LocalCache(tmp_path).limit_bytes > 0.49e13


@pytest.mark.parametrize("value", ["much", "20GB", "0", "-3", " ", "nan", "inf"])
def test_a_bad_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str):
    """With what was received and what is expected."""
    monkeypatch.setenv("PHARMCLF_STORAGE_CACHE_GB", value)
    with pytest.raises(ConfigError, match=rf"PHARMCLF_STORAGE_CACHE_GB: received '{value}', expected a number of giga"):
        LocalCache(tmp_path)
