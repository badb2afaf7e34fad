"""Which rows one pass over the images computes: the missing shards of some caches as ranges of rows. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from pharmclf.feature_cache.cache_key import KeyParts
from pharmclf.feature_cache.shards import ShardId, ShardLayout


@dataclass(frozen=True)
class CacheTarget:
    """A cache that is computed."""

    location: str
    key: KeyParts
    layout: ShardLayout

    @property
    def depth(self) -> int:
        """Blocks of the backbone above the cut."""
        return self.key["cut"]


@dataclass(frozen=True)
class RowRange:
    """Consecutive rows of a split that are computed together: some shards of each target."""

    section: str
    first: int
    last: int
    """Exclusive."""

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.last - self.first


def row_ranges(layouts: Sequence[ShardLayout], missing: Sequence[Collection[ShardId]]) -> list[RowRange]:
    """The rows that must be computed for the missing shards of several targets, in ranges of one shard at most.

    Args:
        layouts: of the targets, over the same rows.
        missing: the missing shards of each target.
    """
    ranges = []
    for sections in zip(*(layout.sections for layout in layouts), strict=True):
        needed = np.zeros(sections[0].rows, bool)
        for section, shards in zip(sections, missing, strict=True):
            for name, shard in shards:
                if name == section.name:
                    needed[slice(*section.row_range(shard))] = True
        step = max(section.rows_per_shard for section in sections)
        for first in range(0, sections[0].rows, step):
            indexes = first + np.flatnonzero(needed[first : first + step])
            if len(indexes):
                ranges.append(RowRange(sections[0].name, int(indexes[0]), int(indexes[-1]) + 1))
    return ranges
