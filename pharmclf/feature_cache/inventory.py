"""The feature caches in a storage: what they hold, when they were last used, which to delete, and their deletion."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from pharmclf import storage
from pharmclf.core.tables import align_columns
from pharmclf.core.units import format_age, format_size
from pharmclf.feature_cache.cache_key import cache_root
from pharmclf.feature_cache.shards import INDEX_FILE, USED_FILE, read_index
from pharmclf.storage.lease import Lease, LeaseHeldError

_KEY = re.compile(r"[0-9a-f]{32}")  # folders of other names are not feature caches
_READERS = 16  # concurrent readers of folders
_HEADING = ("key", "backbone", "image size", "cut", "views", "dtype", "size", "last used", "run", "state")


@dataclass(frozen=True)
class CacheEntry:
    """The cache of one cut; fields from its index are empty where it has none."""

    key: str
    """Name of the folder."""
    location: str
    size_bytes: int
    """Of all files."""
    complete: bool
    """Whether it has an index; without one it is being computed, or its computation was interrupted."""
    used_s: float
    """Time of the last use, seconds since 1970; of the last change where no use is recorded."""
    run: str = ""
    """Name of the run that used it last; "": unknown."""
    backbone: str = ""
    image_size: int | None = None
    cut: int | None = None
    """Blocks of the backbone above the cut."""
    dtype: str = ""
    views: int | None = None
    """Augmented views of a training image."""
    num_views: int | None = None
    """Cached views of all images."""


def list_entries(storage_location: str) -> list[CacheEntry]:
    """List the feature caches in a storage, the most recently used first.

    Raises:
        OSError: no such bucket, no right to read it, or no answer.
    """
    root = cache_root(storage_location)
    keys = [name for name in storage.list_folders(root) if _KEY.fullmatch(name)]
    with ThreadPoolExecutor(_READERS) as pool:
        entries = [entry for entry in pool.map(functools.partial(_read_entry, root), keys) if entry]
    return sorted(entries, key=lambda entry: (-entry.used_s, entry.key))


def select_for_eviction(
    entries: Iterable[CacheEntry], now_s: float, older_than_s: float | None, down_to_bytes: float | None
) -> list[CacheEntry]:
    """Choose the caches to delete, the least recently used first. Pure.

    Args:
        now_s: seconds since 1970.
        older_than_s: delete what was not used for so long; None: nothing because of its age.
        down_to_bytes: delete more until the others take at most so many bytes; None: nothing because of its size.
    """
    oldest_first = sorted(entries, key=lambda entry: (entry.used_s, entry.key))
    total = sum(entry.size_bytes for entry in oldest_first)
    chosen = []
    for entry in oldest_first:
        age_s = max(0.0, now_s - entry.used_s)  # the storage's clock may be ahead of ours
        is_old = older_than_s is not None and age_s >= older_than_s
        if is_old or (down_to_bytes is not None and total > down_to_bytes):
            chosen.append(entry)
            total -= entry.size_bytes
    return chosen


def delete_entries(entries: Iterable[CacheEntry]) -> tuple[list[CacheEntry], list[str]]:
    """Delete caches, except those that are being computed and those of other users.

    Returns:
        The deleted caches; and for each other one a line with its folder and the reason.

    Raises:
        OSError: the storage does not answer.
    """
    deleted, skipped = [], []
    for entry in entries:
        try:
            # released before the folder is deleted: a renewal would leave its files behind
            with Lease.acquire(entry.location):
                # the index first: without it, what an interrupted deletion leaves does not count as a cache
                storage.delete_file(storage.join(entry.location, INDEX_FILE))
            storage.delete_folder(entry.location)
            deleted.append(entry)
        except (LeaseHeldError, PermissionError) as error:
            skipped.append(str(error))  # it names the folder
    return deleted, skipped


def entries_table(entries: Sequence[CacheEntry], now_s: float) -> str:
    """Caches as aligned lines below a heading, in their order, and a last line with their sum."""
    rows: list[tuple[str, ...]] = [_HEADING]
    for entry in entries:
        state, used = "complete" if entry.complete else "incomplete", format_age(now_s - entry.used_s)
        fields = (entry.backbone, entry.image_size, entry.cut, entry.views, entry.dtype)
        texts = ("-" if value in ("", None) else str(value) for value in fields)
        rows.append((entry.key, *texts, format_size(entry.size_bytes), used, entry.run or "-", state))
    total = format_size(sum(entry.size_bytes for entry in entries))
    return "\n".join([*align_columns(rows), f"{len(entries)} in all, {total}"])


def _read_entry(root: str, key: str) -> CacheEntry | None:
    """The cache in a folder; None where another process has deleted it."""
    location = storage.join(root, key)
    try:
        files = list(storage.list_files(location))
    except FileNotFoundError:
        return None
    used_s, run = _read_last_use(location) or (max((file.mtime_ns for file in files), default=0) / 1e9, "")
    entry = CacheEntry(key, location, sum(file.size_bytes for file in files), complete=False, used_s=used_s, run=run)
    try:
        if (index := read_index(location)) is None:
            return entry
        parts = index.parts
        return replace(
            entry,
            complete=True,
            backbone=parts["backbone"],
            image_size=parts["image_size"],
            cut=parts["cut"],
            dtype=parts["dtype"],
            views=parts["augment"]["views"] if parts["augment"] else 1,
            num_views=sum(section.rows * section.views for section in index.layout.sections),
        )
    except (LookupError, TypeError, ValueError):  # of another version, or damaged
        return entry


def _read_last_use(location: str) -> tuple[float, str] | None:
    """Time and run of the last use; None where there is no readable record."""
    try:
        record = storage.read_json(storage.join(location, USED_FILE))
        used_s = float(record["used_s"])
        return (used_s, str(record.get("run", ""))) if math.isfinite(used_s) else None
    except (FileNotFoundError, LookupError, TypeError, AttributeError, ValueError):
        return None
