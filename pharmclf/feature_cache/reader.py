"""Reads cached features from memory-mapped shards, each compared with its sha256 when it is first opened."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from pharmclf import storage
from pharmclf.core.hashing import sha256_file
from pharmclf.data.batch_sampler import PADDING
from pharmclf.feature_cache.local_cache import LocalCache
from pharmclf.feature_cache.shards import CachedFeatures, FeatureCacheCorruptedError, ShardId, sha256_in_name
from pharmclf.monitoring.cgroup import ControlGroup

Shard = NDArray[np.floating]
"""(rows, views, *cut)."""
_OPEN_SHARDS = 400  # each holds a file descriptor
_FETCH_THREADS = 8  # concurrent fetches from an object store
_MEMORY_SHARE = 1 / 16  # of the free memory, for pooled features of one process


class FeatureReader:
    """The cached features of one cut for one process; small ones are held in memory."""

    def __init__(self, features: CachedFeatures) -> None:
        self._features, layout = features, features.layout
        self._cache = LocalCache() if storage.is_remote(features.location) else None
        self._index = {split: _row_index(rows) for split, rows in features.rows.items()}
        self._open: collections.OrderedDict[ShardId, Shard] = collections.OrderedDict()
        self._verified: set[str] = set()
        self._in_memory: dict[str, Shard] = {}
        is_pooled = len(layout.shape) == 1
        if is_pooled and layout.num_bytes <= _MEMORY_SHARE * free_memory_bytes():
            for section in layout.sections:
                values = np.empty((section.rows, section.views, *layout.shape), layout.dtype)
                for group in _groups(range(section.num_shards)):
                    for (_, shard), mapped in self._map_all([(section.name, shard) for shard in group]).items():
                        values[slice(*section.row_range(shard))] = mapped
                self._in_memory[section.name] = values

    def read(self, split: str, rows: NDArray[np.int64], view: int) -> NDArray[np.floating]:
        """Read the features of rows of one split.

        Args:
            split: "train" or "validation".
            rows: (n,) row numbers of the manifest; `PADDING` gives zeros.
            view: the view of training rows, 0 for validation.

        Returns:
            (n, *cut), of the cached type; NaN where the file of an image differs from the manifest.

        Raises:
            FeatureCacheCorruptedError: a shard is damaged or missing.
            PermissionError, StorageUnavailableError: the storage cannot be read.
        """
        layout = self._features.layout
        out = np.zeros((len(rows), *layout.shape), layout.dtype)
        used = np.flatnonzero(rows != PADDING)
        indexes = self._index[split][rows[used]]
        if self._in_memory:
            out[used] = self._in_memory[split][indexes, view]
            return out
        shards, offsets = np.divmod(indexes, layout.section(split).rows_per_shard)
        for group in _groups(np.unique(shards).tolist()):
            maps = self._open_shards([(split, shard) for shard in group])
            own = (shards >= group[0]) & (shards <= group[-1])
            for number, shard, offset in zip(used[own], shards[own].tolist(), offsets[own], strict=True):
                out[number] = maps[split, shard][offset, view]
            del maps  # it would hold this group open while the next one is opened
        return out

    def _open_shards(self, shards: list[ShardId]) -> dict[ShardId, Shard]:
        """Map a group of shards, where it is not open yet, in place of those that were not used for longest."""
        missing = [shard for shard in shards if shard not in self._open]
        for shard in set(shards).difference(missing):
            self._open.move_to_end(shard)
        while len(self._open) + len(missing) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        self._open.update(self._map_all(missing))
        return {shard: self._open[shard] for shard in shards}

    def _map_all(self, shards: Sequence[ShardId]) -> dict[ShardId, Shard]:
        """Map shards, which are fetched concurrently."""
        with ThreadPoolExecutor(_FETCH_THREADS) as pool:
            return dict(zip(shards, pool.map(self._map, shards), strict=True))

    def _map(self, shard: ShardId) -> Shard:
        """Map a shard, and verify it where this process has not, or where it may be a new copy."""
        name = self._features.files[shard[0]][shard[1]]
        location = storage.join(self._features.location, name)

        def verified(path: Path) -> Shard | None:
            if (self._cache or name not in self._verified) and sha256_file(path) != sha256_in_name(name):
                return None
            self._verified.add(name)
            array: Shard = np.load(path, mmap_mode="r", allow_pickle=False)
            return array

        try:
            if self._cache is None:
                array = verified(Path(location))
            elif (array := self._cache.open(location, verified)) is None:  # the copy may be damaged, and not the object
                self._cache.evict(location)
                if (array := self._cache.open(location, verified)) is None:
                    self._cache.evict(location)
        except FileNotFoundError as error:
            raise FeatureCacheCorruptedError(f"{location} is missing") from error
        if array is None:
            raise FeatureCacheCorruptedError(f"{location} is damaged: its content does not have the sha256 in its name")
        return array


def free_memory_bytes(group: ControlGroup | None = None) -> int:
    """Free memory of this machine, within the limits of `group`; None: of this process, as those of a container."""
    free = psutil.virtual_memory().available
    limited = (group or ControlGroup()).memory()
    return min(free, max(0, limited[1] - limited[0])) if limited else free


def _groups(shards: Sequence[int]) -> Iterator[Sequence[int]]:
    """Shards in groups that can be open at the same time."""
    for first in range(0, len(shards), _OPEN_SHARDS):
        yield shards[first : first + _OPEN_SHARDS]


def _row_index(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The index of every row of the manifest among these rows, as an array over row numbers."""
    index = np.full(int(rows.max(initial=-1)) + 1, -1, np.int64)
    index[rows] = np.arange(len(rows))
    return index
