"""Reads kept activations: memory-mapped shards, each compared with its sha256 when it is first opened."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from pharmclf import storage
from pharmclf.core.hashing import sha256_file
from pharmclf.data.batch_sampler import PADDING
from pharmclf.feature_cache.local_cache import LocalCache
from pharmclf.feature_cache.shards import CachedFeatures, FeatureCacheCorruptedError, sha256_in_name

_OPEN_SHARDS = 400  # each holds a file descriptor
_FETCH_THREADS = 8  # concurrent fetches from an object store
_MEMORY_SHARE = 1 / 16  # of the memory that is free, for pooled features of one process


class FeatureReader:
    """The activations of one cut for one process."""

    def __init__(self, activations: CachedFeatures) -> None:
        self._activations = activations
        self._cache = LocalCache() if storage.is_remote(activations.location) else None
        self._places = {name: _row_index(rows) for name, rows in activations.rows.items()}
        self._open: collections.OrderedDict[tuple[str, int], NDArray[np.floating]] = collections.OrderedDict()
        self._verified: set[str] = set()
        layout = activations.layout
        pooled = len(layout.shape) == 1
        self._held: dict[str, NDArray[np.floating]] = {}
        if pooled and layout.num_bytes <= _MEMORY_SHARE * psutil.virtual_memory().available:
            self._held = {section.name: self._concatenated(section.name) for section in layout.sections}

    def read(self, section: str, rows: NDArray[np.int64], view: int) -> NDArray[np.floating]:
        """The activations of rows of one split.

        Args:
            section: "train" or "validation".
            rows: (n,) row numbers of the manifest; `PADDING` gives zeros.
            view: the view of training rows, 0 for validation.

        Returns:
            (n, *cut), of the type in which they are kept; NaN where an image was not what the manifest says.

        Raises:
            FeatureCacheCorruptedError: a shard is damaged or gone.
            PermissionError, StorageUnavailableError: the storage gives nothing.
        """
        layout = self._activations.layout
        out = np.zeros((len(rows), *layout.shape), layout.dtype)
        used = np.flatnonzero(rows != PADDING)
        places = self._places[section][rows[used]]
        if self._held:
            out[used] = self._held[section][places, view]
            return out
        shards, offsets = np.divmod(places, layout.section(section).rows_per_shard)
        maps = self._maps(section, sorted({int(shard) for shard in shards}))
        for number, shard, offset in zip(used, shards, offsets, strict=True):
            out[number] = maps[int(shard)][offset, view]
        return out

    def _maps(self, section: str, shards: Sequence[int]) -> dict[int, NDArray[np.floating]]:
        """Maps of some shards, those of them that are not open yet fetched side by side."""
        closed = [shard for shard in shards if (section, shard) not in self._open]
        with ThreadPoolExecutor(_FETCH_THREADS) as pool:
            self._open.update(
                ((section, shard), array)
                for shard, array in zip(closed, pool.map(lambda shard: self._map(section, shard), closed), strict=True)
            )
        maps = {}
        for shard in shards:
            maps[shard] = self._open[section, shard]
            self._open.move_to_end((section, shard))
        while len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return maps

    def _concatenated(self, section: str) -> NDArray[np.floating]:
        """All of a section in memory: (rows, views, *cut)."""
        count = self._activations.layout.section(section).num_shards
        with ThreadPoolExecutor(_FETCH_THREADS) as pool:
            return np.concatenate(list(pool.map(lambda shard: self._map(section, shard), range(count))))

    def _map(self, section: str, shard: int) -> NDArray[np.floating]:
        """Map a shard, and verify it where this process has not yet, or where it may be a new copy."""
        name = self._activations.files[section][shard]
        location = storage.join(self._activations.location, name)

        def verified(path: Path) -> NDArray[np.floating] | None:
            if (self._cache or name not in self._verified) and sha256_file(path) != sha256_in_name(name):
                return None
            self._verified.add(name)
            return np.load(path, mmap_mode="r", allow_pickle=False)

        try:
            found = self._cache.open(location, verified) if self._cache else verified(Path(location))
            if found is None and self._cache:  # the copy may be damaged where the object is not
                self._cache.evict(location)
                found = self._cache.open(location, verified)
        except FileNotFoundError as error:
            raise FeatureCacheCorruptedError(f"{location} is gone") from error
        if found is None:
            if self._cache:
                self._cache.evict(location)
            raise FeatureCacheCorruptedError(f"{location} is damaged: its content is not what its sha256 says")
        return found


def _row_index(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of every row of the manifest among these rows, as an array over row numbers."""
    places = np.full(int(rows.max(initial=-1)) + 1, -1, np.int64)
    places[rows] = np.arange(len(rows))
    return places
