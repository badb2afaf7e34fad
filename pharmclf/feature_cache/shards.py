"""The shards of a feature cache: layout, file names, the index, and which shards are missing.

A shard is a `.npy` file of shape (rows, views, *cut) that can be memory-mapped. Its name contains the sha256 of its
content, so an interrupted computation resumes without reading what it has written. Where the file of an image differs
from the manifest, the image's row is NaN and the name marks the shard as incomplete. An incomplete shard is used by the
run that has computed it, and counts as missing for every other run.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.errors import RunError
from pharmclf.core.hashing import sha256_bytes, sha256_file
from pharmclf.data.manifest import Manifest
from pharmclf.feature_cache.cache_key import SPLITS, KeyParts
from pharmclf.schema_version import SCHEMA_KEY, SCHEMA_VERSION, check_schema_version

INDEX_FILE = "index.json"
USED_FILE = "used.json"
"""Time and run of the last use, for the inventory."""
ShardId = tuple[str, int]
"""Split and number of a shard."""
_SHARD_BYTES = 16 << 20
_PIXEL_BYTES = 64 << 20  # decoded images of one shard's rows, which travel as one block
_MAX_ROWS = 256  # of a shard: the work that an interruption may lose
_HEADER_BYTES = 128  # of a .npy file
_INCOMPLETE = ".incomplete"
_NAME = re.compile(rf"([a-z]+)-(\d{{6}})\.([0-9a-f]{{64}})({re.escape(_INCOMPLETE)})?\.npy")


class FeatureCacheCorruptedError(RunError):
    """A shard is damaged or missing: compute it again, or stream the images."""


class FeatureCacheUnavailableError(RunError):
    """The features cannot be written, or exceed their number format: training must stream the images."""


@dataclass(frozen=True)
class SplitShards:
    """The shards of one split."""

    name: str
    rows: int
    views: int
    """Augmented views of each row."""
    rows_per_shard: int
    """A power of two."""

    @property
    def num_shards(self) -> int:
        """Shards of the split; the last one may hold fewer rows."""
        return -(-self.rows // self.rows_per_shard)

    def row_range(self, shard: int) -> tuple[int, int]:
        """First and last (exclusive) index of a shard's rows in the split."""
        return shard * self.rows_per_shard, min(self.rows, (shard + 1) * self.rows_per_shard)


@dataclass(frozen=True)
class ShardLayout:
    """Shape and division of the features at one cut."""

    shape: tuple[int, ...]
    """Of the tensor at the cut, for one view of an image."""
    dtype: str
    sections: tuple[SplitShards, ...]
    """One for each split."""

    @staticmethod
    def of(config: RunConfig, manifest: Manifest, shape: tuple[int, ...]) -> ShardLayout:
        """The layout of a run's features at a cut of this shape."""
        item_bytes = math.prod(shape) * np.dtype(config.feature_cache_dtype).itemsize
        image_bytes = 3 * config.image_size**2

        def section(name: str) -> SplitShards:
            views = config.views if name == "train" else 1
            most = min(_SHARD_BYTES // (item_bytes * views), _PIXEL_BYTES // image_bytes, _MAX_ROWS)
            return SplitShards(name, len(manifest.cached_rows(name)), views, 1 << max(0, most.bit_length() - 1))

        return ShardLayout(shape, config.feature_cache_dtype, tuple(section(name) for name in SPLITS))

    @property
    def item_bytes(self) -> int:
        """Bytes of the features of one view of an image."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of all features."""
        return sum(section.rows * section.views for section in self.sections) * self.item_bytes

    @property
    def shards(self) -> list[ShardId]:
        """All shards, in order."""
        return [(section.name, shard) for section in self.sections for shard in range(section.num_shards)]

    def section(self, name: str) -> SplitShards:
        """The shards of a split."""
        return next(section for section in self.sections if section.name == name)

    def shard_bytes(self, section: SplitShards, shard: int) -> int:
        """Size of a shard's file."""
        first, last = section.row_range(shard)
        return _HEADER_BYTES + (last - first) * section.views * self.item_bytes

    def to_dict(self) -> dict[str, object]:
        """The layout as values for JSON."""
        return {"shape": list(self.shape), "dtype": self.dtype, "sections": [vars(item) for item in self.sections]}

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> ShardLayout:
        """The layout that `to_dict` returned."""
        sections = tuple(SplitShards(**item) for item in record["sections"])
        return ShardLayout(tuple(record["shape"]), record["dtype"], sections)


@dataclass(frozen=True)
class CacheIndex:
    """The content of `INDEX_FILE`."""

    parts: KeyParts
    layout: ShardLayout
    files: Mapping[str, Sequence[str]]
    """Names of the shards by split, in order."""


@dataclass(frozen=True, eq=False)
class CachedFeatures:
    """All features of one cut, as a worker receives them."""

    location: str
    layout: ShardLayout
    rows: Mapping[str, NDArray[np.int64]]
    """Row numbers of the manifest by split, in the order of the shards."""
    files: Mapping[str, Sequence[str]]
    """Names of the shards by split, in order."""

    @staticmethod
    def of(
        location: str, layout: ShardLayout, manifest: Manifest, files: Mapping[str, Sequence[str]]
    ) -> CachedFeatures:
        """The features of a manifest's rows."""
        return CachedFeatures(location, layout, {split: manifest.cached_rows(split) for split in SPLITS}, files)


def shard_name(section: str, shard: int, sha256: str, *, complete: bool = True) -> str:
    """Name of a shard's file."""
    return f"{section}-{shard:06d}.{sha256}{'' if complete else _INCOMPLETE}.npy"


def sha256_in_name(name: str) -> str:
    """The sha256 in the name of a shard's file."""
    return name.split(".")[1]


def missing_rows(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which rows have no features: (rows, ...) -> (rows,)."""
    return np.asarray(np.isnan(values.reshape(len(values), -1)[:, 0]))


def write_shard(location: str, section: str, shard: int, values: NDArray[np.floating]) -> str:
    """Write a shard and return the name of its file.

    Args:
        values: (rows, views, *cut); a row without features is NaN, and makes the shard incomplete.
    """
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    content = buffer.getvalue()
    name = shard_name(section, shard, sha256_bytes(content), complete=not missing_rows(values).any())
    storage.write_bytes(storage.join(location, name), content)
    return name


def existing_shards(location: str, layout: ShardLayout, *, complete: bool = True) -> list[tuple[str, int, str]]:
    """List the shards of the right size in a folder, the complete or the incomplete ones: split, number, file name."""
    existing = []
    sections = {section.name: section for section in layout.sections}
    try:
        entries = list(storage.list_files(location))
    except FileNotFoundError:  # nothing is written yet
        return []
    for entry in entries:
        name = entry.location.rsplit("/", 1)[-1]
        match = _NAME.fullmatch(name)
        section = sections.get(match[1]) if match else None
        if match and section and int(match[2]) < section.num_shards and complete == (match[4] is None):
            shard = int(match[2])
            if entry.size_bytes == layout.shard_bytes(section, shard):
                existing.append((section.name, shard, name))
    return existing


def delete_corrupted(caches: Iterable[CachedFeatures]) -> int:
    """Delete the shards whose content does not have the sha256 in their names -> their number.

    `manager.get_or_compute` computes them again.
    """
    num_deleted = 0
    for cache in caches:
        for _, _, name in existing_shards(cache.location, cache.layout):
            location = storage.join(cache.location, name)
            with contextlib.suppress(FileNotFoundError):  # another process has deleted it
                with storage.local_file(location) as path:
                    is_damaged = sha256_file(path) != sha256_in_name(name)
                if is_damaged:
                    storage.delete_file(location)
                    num_deleted += 1
    return num_deleted


def missing_shards(layout: ShardLayout, names: Mapping[ShardId, str]) -> list[ShardId]:
    """The shards that have no file, in order."""
    return [shard for shard in layout.shards if shard not in names]


def files_by_split(layout: ShardLayout, names: Mapping[ShardId, str]) -> dict[str, list[str]]:
    """File names of all shards by split, in order."""
    return {
        section.name: [names[section.name, shard] for shard in range(section.num_shards)] for section in layout.sections
    }


def write_index(
    location: str, layout: ShardLayout, parts: KeyParts, names: Mapping[ShardId, str], seconds: float
) -> None:
    """Write the index of a folder whose shards are complete; a cache without an index does not exist."""
    index = {
        SCHEMA_KEY: SCHEMA_VERSION,
        "parts": parts,
        "layout": layout.to_dict(),
        "bytes": layout.num_bytes,
        "seconds": seconds,
        "files": files_by_split(layout, names),
    }
    storage.write_json(storage.join(location, INDEX_FILE), index)


def read_index(location: str) -> CacheIndex | None:
    """Read the index of a folder; None where there is none, or a damaged one.

    Raises:
        ConfigError: of another version.
    """
    try:
        index = storage.read_json(storage.join(location, INDEX_FILE))
    except (FileNotFoundError, ValueError):
        return None
    check_schema_version(index, storage.join(location, INDEX_FILE))
    try:
        layout = ShardLayout.from_dict(index["layout"])
        files = {section.name: list(index["files"][section.name]) for section in layout.sections}
        parts: KeyParts = dict(index["parts"])  # type: ignore[assignment]
        return CacheIndex(parts, layout, files)
    except (LookupError, TypeError, AttributeError, ValueError):
        return None


def open_features(location: str, manifest: Manifest) -> CachedFeatures | None:
    """The features of a folder that has an index and all shards in full size; else None.

    The content of a shard is compared with its sha256 when it is first read.
    """
    index = read_index(location)
    if index is None:
        return None
    existing = {name for _, _, name in existing_shards(location, index.layout)}
    if not existing.issuperset(name for names in index.files.values() for name in names):
        return None
    return CachedFeatures.of(location, index.layout, manifest, index.files)
