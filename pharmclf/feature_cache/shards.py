"""The shards of kept activations: their layout, their names, the index, and what is still missing.

A shard is a `.npy` file of shape (rows, views, *cut) that can be memory-mapped; its name carries the sha256 of its
content, so that an interrupted computation goes on without reading back what it has written. Where an image of its
rows is not what the manifest says, a shard is incomplete: the row is NaN, the name says so, and the shard serves only
the run that has computed it. For every other one it is missing.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.errors import RunError
from pharmclf.core.hashing import sha256_bytes
from pharmclf.data.manifest import Manifest
from pharmclf.feature_cache.cache_key import SPLITS
from pharmclf.schema_version import SCHEMA_KEY, SCHEMA_VERSION, check_schema_version

INDEX_FILE = "index.json"
USED_FILE = "used.json"
"""Time and run of the last use, for the listing."""
_SHARD_BYTES = 16 << 20
_PIXEL_BYTES = 64 << 20  # decoded images of one shard's rows, which travel as one block
_MAX_ROWS = 256  # of a shard: what an interruption may cost
_HEADER_BYTES = 128  # of a .npy file
_INCOMPLETE = ".incomplete"
_NAME = re.compile(rf"([a-z]+)-(\d{{6}})\.([0-9a-f]{{64}})({re.escape(_INCOMPLETE)})?\.npy")


class FeatureCacheCorruptedError(RunError):
    """A shard is damaged or gone; the activations must be computed anew, or done without."""


class FeatureCacheUnavailableError(RunError):
    """They cannot be written or do not fit their number format; training must stream the images."""


@dataclass(frozen=True)
class SplitShards:
    """The activations of one split."""

    name: str
    rows: int
    views: int
    """Different pictures of each row."""
    rows_per_shard: int
    """A power of two."""

    @property
    def num_shards(self) -> int:
        """Shards of the section; the last one may hold fewer rows."""
        return -(-self.rows // self.rows_per_shard)

    def row_range(self, shard: int) -> tuple[int, int]:
        """First and last (exclusive) place of a shard's rows within the split."""
        return shard * self.rows_per_shard, min(self.rows, (shard + 1) * self.rows_per_shard)


@dataclass(frozen=True)
class ShardLayout:
    """Shape and division of the activations at one cut."""

    shape: tuple[int, ...]
    """Of the tensor at the cut, for one picture."""
    dtype: str
    sections: tuple[SplitShards, ...]

    @staticmethod
    def of(config: RunConfig, manifest: Manifest, shape: tuple[int, ...]) -> ShardLayout:
        """The layout of a run's activations at a cut of this shape."""
        item_bytes = math.prod(shape) * np.dtype(config.activations_dtype).itemsize
        image_bytes = 3 * config.image_size**2

        def section(name: str) -> SplitShards:
            views = config.views if name == "train" else 1
            most = min(_SHARD_BYTES // (item_bytes * views), _PIXEL_BYTES // image_bytes, _MAX_ROWS)
            return SplitShards(name, len(manifest.rows(name)), views, 1 << max(0, most.bit_length() - 1))

        return ShardLayout(shape, config.activations_dtype, tuple(section(name) for name in SPLITS))

    @property
    def item_bytes(self) -> int:
        """Bytes of one picture's activations."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(section.rows * section.views for section in self.sections) * self.item_bytes

    def section(self, name: str) -> SplitShards:
        """The section of a split."""
        return next(section for section in self.sections if section.name == name)

    def shard_bytes(self, section: SplitShards, shard: int) -> int:
        """Size of a shard's file."""
        first, last = section.row_range(shard)
        return _HEADER_BYTES + (last - first) * section.views * self.item_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"shape": list(self.shape), "dtype": self.dtype, "sections": [vars(item) for item in self.sections]}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> ShardLayout:
        """What `to_dict` gave."""
        return ShardLayout(
            tuple(value["shape"]), value["dtype"], tuple(SplitShards(**item) for item in value["sections"])
        )


@dataclass(frozen=True, eq=False)
class CachedFeatures:
    """The whole activations of one cut, as a worker is given them."""

    location: str
    layout: ShardLayout
    rows: Mapping[str, NDArray[np.int64]]
    """Row numbers of the manifest, by section, in the order in which they are kept."""
    files: Mapping[str, Sequence[str]]
    """Names of the shards, by section, in order."""


def shard_name(section: str, shard: int, sha256: str, *, complete: bool = True) -> str:
    """Name of a shard's file."""
    return f"{section}-{shard:06d}.{sha256}{'' if complete else _INCOMPLETE}.npy"


def missing_rows(values: np.ndarray) -> NDArray[np.bool_]:
    """Which rows have no activations: (rows, ...) -> (rows,)."""
    return np.isnan(values.reshape(len(values), -1)[:, 0])


def write_shard(location: str, section: str, shard: int, values: np.ndarray) -> str:
    """Write a shard -> the name of its file.

    Args:
        location: the folder.
        section: of the shard.
        shard: its number.
        values: (rows, views, *cut); a row that has none is NaN, and the shard is incomplete.
    """
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    content = buffer.getvalue()
    name = shard_name(section, shard, sha256_bytes(content), complete=not missing_rows(values).any())
    storage.write_bytes(storage.join(location, name), content)
    return name


def sha256_in_name(name: str) -> str:
    """The sha256 that stands in the name of a shard's file."""
    return name.split(".")[1]


def existing_shards(location: str, layout: ShardLayout, *, complete: bool = True) -> list[tuple[str, int, str]]:
    """The complete shards of the right size in a folder, or the others: section, number, and name of the file."""
    standing = []
    sections = {section.name: section for section in layout.sections}
    try:
        entries = list(storage.list_files(location))
    except FileNotFoundError:  # nothing has been written yet
        return []
    for entry in entries:
        name = entry.location.rsplit("/", 1)[-1]
        match = _NAME.fullmatch(name)
        section = sections.get(match[1]) if match else None
        if match and section and int(match[2]) < section.num_shards and complete == (match[4] is None):
            shard = int(match[2])
            if entry.size_bytes == layout.shard_bytes(section, shard):
                standing.append((section.name, shard, name))
    return standing


def missing_shards(layout: ShardLayout, found: Mapping[tuple[str, int], str]) -> list[tuple[str, int]]:
    """The shards that do not stand there, in order."""
    every = [(section.name, shard) for section in layout.sections for shard in range(section.num_shards)]
    return [shard for shard in every if shard not in found]


def shard_files(layout: ShardLayout, found: Mapping[tuple[str, int], str]) -> dict[str, list[str]]:
    """Names of the shards by section, in order, of those by section and number."""
    return {
        section.name: [found[section.name, shard] for shard in range(section.num_shards)] for section in layout.sections
    }


def write_index(
    location: str, layout: ShardLayout, parts: Mapping[str, Any], found: Mapping[tuple[str, int], str], seconds: float
) -> None:
    """Write the index of a folder whose shards are complete; without it the activations do not exist.

    Args:
        location: the folder.
        layout: of its shards.
        parts: of the key.
        found: names of all shards.
        seconds: that their computation took.
    """
    files = shard_files(layout, found)
    about = {
        SCHEMA_KEY: SCHEMA_VERSION,
        "parts": dict(parts),
        "layout": layout.to_dict(),
        "bytes": layout.num_bytes,
        "seconds": seconds,
    }
    storage.write_json(storage.join(location, INDEX_FILE), about | {"files": files})


def read_index(location: str) -> dict[str, Any] | None:
    """What `write_index` wrote; None where there is none that can be read.

    Raises:
        ConfigError: of another version.
    """
    try:
        value = storage.read_json(storage.join(location, INDEX_FILE))
    except (FileNotFoundError, ValueError):
        return None
    check_schema_version(value, storage.join(location, INDEX_FILE))
    return value if isinstance(value, dict) and {"parts", "layout", "files", "bytes"} <= set(value) else None


def open_features(location: str, manifest: Manifest) -> CachedFeatures | None:
    """The activations of a folder, if its index stands and all its shards are there in full size.

    The content of a shard is compared with its sha256 when it is first read.
    """
    index = read_index(location)
    if index is None:
        return None
    try:
        layout = ShardLayout.from_dict(index["layout"])
        files = {section.name: list(index["files"][section.name]) for section in layout.sections}
    except (LookupError, TypeError, AttributeError):  # damaged: what it names is found again by the shards' own names
        return None
    standing = {name for _, _, name in existing_shards(location, layout)}
    if not standing.issuperset(name for names in files.values() for name in names):
        return None
    return CachedFeatures(location, layout, {split: manifest.rows(split) for split in SPLITS}, files)
