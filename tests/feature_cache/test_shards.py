"""Layout and names of shards, and what an interrupted computation still has to do; no Ray, no TensorFlow."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmclf import storage
from pharmclf.config import AugmentConfig, RunConfig
from pharmclf.data.batch_sampler import PADDING
from pharmclf.data.manifest import Manifest
from pharmclf.feature_cache.cache_key import SPLITS
from pharmclf.feature_cache.reader import FeatureReader, free_memory_bytes
from pharmclf.feature_cache.shards import (
    CachedFeatures,
    FeatureCacheCorruptedError,
    ShardLayout,
    SplitShards,
    delete_corrupted,
    existing_shards,
    missing_shards,
    open_features,
    shard_name,
    write_index,
)
from pharmclf.monitoring.cgroup import ControlGroup


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node's cache for each test: the tests' shards have the same content, and so the same names."""
    monkeypatch.setenv("PHARMCLF_STORAGE_CACHE", str(tmp_path / "cache"))


def layout_of(rows: int, per_shard: int, views: int = 2, shape: tuple[int, ...] = (3, 5)) -> ShardLayout:
    return ShardLayout(
        shape, "float16", (SplitShards("train", rows, views, per_shard), SplitShards("validation", 3, 1, per_shard))
    )


def fill(location: str, layout: ShardLayout, only: set[tuple[str, int]] | None = None) -> dict[tuple[str, int], str]:
    """Write shards in which row r, view v of a section holds the numbers 100 r + v everywhere."""
    names = {}
    for section in layout.sections:
        values = 100 * np.arange(section.rows)[:, None] + np.arange(section.views)
        whole = np.broadcast_to(
            values.reshape(*values.shape, *(1 for _ in layout.shape)), (*values.shape, *layout.shape)
        ).astype(layout.dtype)
        for shard in range(section.num_shards):
            if only is not None and (section.name, shard) not in only:
                continue
            buffer = io.BytesIO()
            np.save(buffer, whole[slice(*section.row_range(shard))])
            names[section.name, shard] = name = shard_name(
                section.name, shard, hashlib.sha256(buffer.getvalue()).hexdigest()
            )
            storage.write_bytes(storage.join(location, name), buffer.getvalue())
    return names


@pytest.fixture
def kept(root: str) -> CachedFeatures:
    """Ten training rows in two views and three of validation, at row numbers that are not their places."""
    layout = layout_of(10, 4)
    location = storage.join(root, "activations", "some-key")
    names = fill(location, layout)
    files = {s.name: [names[s.name, shard] for shard in range(s.num_shards)] for s in layout.sections}
    return CachedFeatures(location, layout, {"train": np.arange(10) * 3 + 1, "validation": np.array([0, 2, 40])}, files)


@pytest.mark.parametrize("shape", [(3, 5), (7,)])
def test_a_reader_gives_each_row_and_view_its_own(root: str, shape: tuple[int, ...]):
    """From memory-mapped shards and from memory alike; padding gives zeros."""
    layout = layout_of(10, 4, shape=shape)
    location = storage.join(root, "k")
    names = fill(location, layout)
    files = {s.name: [names[s.name, shard] for shard in range(s.num_shards)] for s in layout.sections}
    rows = {"train": np.arange(10) * 3 + 1, "validation": np.array([0, 2, 40])}
    reader = FeatureReader(CachedFeatures(location, layout, rows, files))
    got = reader.read("train", np.array([28, 1, PADDING, 16, 1]), 1)
    assert got.dtype == np.float16
    assert got.shape == (5, *shape)
    assert got.reshape(5, -1)[:, 0].tolist() == [901, 1, 0, 501, 1]
    assert (got.reshape(5, -1) == got.reshape(5, -1)[:, :1]).all()
    assert reader.read("validation", np.array([40, 0]), 0).reshape(2, -1)[:, 0].tolist() == [200, 0]


@pytest.fixture
def few_files() -> Iterator[None]:
    """This process may open 512 files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("shape", [(3, 5), (7,)])
@pytest.mark.usefixtures("few_files")
def test_a_cache_of_more_shards_than_a_process_may_open_is_read(tmp_path: Path, shape: tuple[int, ...]):
    """Also where one batch has rows of all of them."""
    layout, location = layout_of(600, 1, shape=shape), str(tmp_path)
    names = fill(location, layout)
    files = {s.name: [names[s.name, shard] for shard in range(s.num_shards)] for s in layout.sections}
    rows = {"train": np.arange(600), "validation": np.arange(3)}
    reader = FeatureReader(CachedFeatures(location, layout, rows, files))
    order = np.random.default_rng(0).permutation(600)
    for _ in range(2):
        got = reader.read("train", order, 1)
        assert got.reshape(600, -1)[:, 0].tolist() == (100 * order + 1).astype(np.float16).tolist()


def test_the_free_memory_is_that_of_the_container(tmp_path: Path):
    """By it a reader decides whether it holds the features in memory."""
    membership = tmp_path / "membership"
    membership.write_text("0::/\n")
    assert free_memory_bytes(ControlGroup(tmp_path, membership)) > 1 << 20
    (tmp_path / "memory.max").write_text("1000")
    (tmp_path / "memory.current").write_text("400")
    assert free_memory_bytes(ControlGroup(tmp_path, membership)) == 600


def test_a_damaged_shard_is_found_by_its_hash(kept: CachedFeatures):
    """One bit is enough; the other shards can still be read."""
    location = storage.join(kept.location, kept.files["train"][1])
    content = bytearray(storage.read_bytes(location))
    content[-7] ^= 1
    storage.write_bytes(location, bytes(content))
    reader = FeatureReader(kept)
    assert reader.read("train", np.array([1]), 0).shape == (1, 3, 5)
    with pytest.raises(FeatureCacheCorruptedError, match=r"train-000001.*damaged"):
        reader.read("train", np.array([13]), 0)


def test_several_trials_may_delete_the_same_damaged_shards(tmp_path: Path):
    """They find the damage at the same time; a shard that another one has deleted is no failure."""
    layout = layout_of(200, 1)
    names = fill(str(tmp_path), layout)
    for path in tmp_path.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    cache = CachedFeatures(str(tmp_path), layout, {}, {})
    together = threading.Barrier(4)

    def delete(_: int) -> int:
        together.wait()
        return delete_corrupted([cache])

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(delete, range(4))) >= len(names)
    assert existing_shards(str(tmp_path), layout) == []


def test_a_shard_that_is_gone_is_named(kept: CachedFeatures):
    """As after somebody has cleared the activations below a run."""
    storage.delete_file(storage.join(kept.location, kept.files["validation"][0]))
    with pytest.raises(FeatureCacheCorruptedError, match=r"validation-000000.*missing"):
        FeatureReader(kept).read("validation", np.array([0]), 0)


@pytest.mark.s3
def test_shards_that_were_read_are_not_fetched_again(bucket: str):
    """The node's cache gives a remote shard to a second reader after the object itself is gone."""
    layout = layout_of(10, 4)
    names = fill(bucket, layout)
    files = {s.name: [names[s.name, shard] for shard in range(s.num_shards)] for s in layout.sections}
    kept = CachedFeatures(bucket, layout, {"train": np.arange(10), "validation": np.arange(10, 13)}, files)
    first = FeatureReader(kept).read("train", np.arange(10), 1)
    storage.delete_folder(bucket)
    assert np.array_equal(FeatureReader(kept).read("train", np.arange(10), 1), first)


@pytest.mark.s3
def test_a_damaged_copy_is_fetched_anew(bucket: str, tmp_path: Path):
    """The object is whole, so nothing is lost."""
    layout = layout_of(10, 4)
    names = fill(bucket, layout)
    files = {s.name: [names[s.name, shard] for shard in range(s.num_shards)] for s in layout.sections}
    kept = CachedFeatures(bucket, layout, {"train": np.arange(10), "validation": np.arange(10, 13)}, files)
    first = FeatureReader(kept).read("train", np.arange(10), 1)
    for copy in (tmp_path / "cache").glob("*.npy"):
        copy.write_bytes(b"rubbish")
    assert np.array_equal(FeatureReader(kept).read("train", np.arange(10), 1), first)


def test_a_folder_counts_only_when_index_and_all_shards_stand(root: str, drawn_manifest: Manifest):
    """No index: nothing. A shard of another size: nothing. All of them: open."""
    config = RunConfig(image_size=32, augment=AugmentConfig(views=2))
    layout = ShardLayout.of(config, drawn_manifest, (4,))
    names = fill(root, layout)
    assert open_features(root, drawn_manifest) is None
    write_index(root, layout, {"cut": 0}, names, 1.0)
    found = open_features(root, drawn_manifest)
    assert found is not None
    assert found.layout == layout
    assert {split: len(found.rows[split]) for split in SPLITS} == {s.name: s.rows for s in layout.sections}
    storage.write_bytes(storage.join(root, names["validation", 0]), b"half")
    assert open_features(root, drawn_manifest) is None
    assert missing_shards(layout, {(s, n): f for s, n, f in existing_shards(root, layout)}) == [("validation", 0)]


@given(
    shape=st.lists(st.integers(1, 64), min_size=1, max_size=3).map(tuple),
    views=st.integers(1, 9),
    side=st.integers(32, 2048),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_a_shard_stays_within_its_bounds(drawn_manifest: Manifest, shape: Any, views: int, side: int, dtype: str):
    """At most 16 MiB and 64 MiB of decoded images, unless one row alone is more; always a power of two of rows."""
    config = RunConfig(image_size=side, feature_cache_dtype=dtype, augment=AugmentConfig(views=views))  # type: ignore[arg-type]
    layout = ShardLayout.of(config, drawn_manifest, shape)
    for section in layout.sections:
        rows = section.rows_per_shard
        assert rows & (rows - 1) == 0
        assert rows == 1 or rows * section.views * layout.item_bytes <= 16 << 20
        assert rows == 1 or rows * 3 * side * side <= 64 << 20
        assert sum(last - first for first, last in map(section.row_range, range(section.num_shards))) == section.rows
    assert ShardLayout.from_dict(layout.to_dict()) == layout
    assert dataclasses.replace(layout, dtype="float32").num_bytes >= layout.num_bytes
