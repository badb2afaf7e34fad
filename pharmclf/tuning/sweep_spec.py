"""What a sweep trains: its plain run, space and search, and where its trials are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pharmclf.config import RunConfig
from pharmclf.tuning.search import Search
from pharmclf.tuning.space import Space


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """What decides the trials of a sweep."""

    base: RunConfig
    """The plain run."""
    space: Space
    search: Search
    total: int
    """Trials in all."""
    folder: str
    """Of the sweep."""
    fingerprints: Mapping[str, Any]
    """data and weights, as of a plain run."""
    kept: Mapping[str, Sequence[int]]
    """By `feature_cache_settings` a configuration, the depths with cached features."""
    rungs: Sequence[int]
    """Where trials are compared; none: all train to their end."""
    factor: int
    batch_heads: bool
    precision: str
    """That trials compute in; `auto` has become what the device takes."""
