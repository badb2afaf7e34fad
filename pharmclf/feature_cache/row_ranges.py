"""What is computed in one pass: the shards that some targets lack, as spans of neighbouring rows; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pharmclf.feature_cache.shards import ShardLayout


@dataclass(frozen=True)
class CacheTarget:
    """Activations that are to be computed."""

    location: str
    depth: int
    """Blocks of the backbone behind the cut."""
    layout: ShardLayout


@dataclass(frozen=True)
class RowRange:
    """Neighbouring rows of a section that are computed together: some shards of each target."""

    section: str
    first: int
    last: int
    """Behind the last row's place."""


def row_ranges(layouts: Sequence[ShardLayout], missing: Sequence[Sequence[tuple[str, int]]]) -> list[RowRange]:
    """The rows that must be computed for the missing shards of several targets, in pieces of one shard at most. Pure.

    Args:
        layouts: of the targets, over the same rows.
        missing: section and number of each target's missing shards.
    """
    found = []
    for sections in zip(*(layout.sections for layout in layouts), strict=True):
        needed = np.zeros(sections[0].rows, bool)
        for section, shards in zip(sections, missing, strict=True):
            for name, shard in shards:
                if name == section.name:
                    needed[slice(*section.row_range(shard))] = True
        step = max(section.rows_per_shard for section in sections)
        for first in range(0, sections[0].rows, step):
            places = first + np.flatnonzero(needed[first : first + step])
            if len(places):
                found.append(RowRange(sections[0].name, int(places[0]), int(places[-1]) + 1))
    return found
