"""The activations that a storage keeps: what they are, when they were used last, which can go, and their deletion."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pharmclf import storage
from pharmclf.core.tables import align_columns
from pharmclf.core.units import format_age, format_size
from pharmclf.feature_cache.cache_key import cache_root
from pharmclf.feature_cache.shards import INDEX_FILE, USED_FILE, ShardLayout, read_index
from pharmclf.storage.lease import Lease, LeaseHeldError

_KEY = re.compile(r"[0-9a-f]{32}")  # a folder of another name is somebody else's
_READERS = 16  # concurrent readers of folders
_HEADING: tuple[str, ...] = (
    "key",
    "backbone",
    "image size",
    "cut",
    "views",
    "dtype",
    "size",
    "last used",
    "run",
    "state",
)


@dataclass(frozen=True)
class CacheEntry:
    """The activations of one cut, as they lie in storage; what only their index tells is empty where none stands."""

    key: str
    """Name of the folder."""
    location: str
    size_bytes: int
    """Of all files."""
    complete: bool
    """Their index stands; else they are being computed, or the computation was interrupted."""
    used_s: float
    """Time of the last use, seconds since 1970; of the last change where no use is recorded."""
    run: str = ""
    """Name of the run that used them last; "": not known."""
    backbone: str = ""
    image_size: int | None = None
    cut: int | None = None
    """Blocks of the backbone behind the cut."""
    dtype: str = ""
    views: int | None = None
    """Different pictures of a training image."""
    pictures: int | None = None
    """Pictures whose activations are kept, all views of them."""


def list_entries(storage_location: str) -> list[CacheEntry]:
    """The activations below a storage, the most recently used first; none where nothing stands.

    Raises:
        OSError: no such bucket, no right to read it, or no answer.
    """
    root = cache_root(storage_location)
    keys = [name for name in storage.list_folders(root) if _KEY.fullmatch(name)]
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(functools.partial(_read_entry, root), keys)
        return sorted((kept for kept in found if kept), key=lambda kept: (-kept.used_s, kept.key))


def select_for_eviction(
    kept: Iterable[CacheEntry], now_s: float, older_than_s: float | None, down_to_bytes: float | None
) -> list[CacheEntry]:
    """Choose what goes, the least recently used first. Pure.

    Args:
        kept: everything that is there.
        now_s: seconds since 1970.
        older_than_s: all that was not used for so long goes; None: nothing for its age.
        down_to_bytes: as many more go as are needed until the rest is this large at most; None: none for its size.
    """
    oldest_first = sorted(kept, key=lambda entry: (entry.used_s, entry.key))
    rest = sum(entry.size_bytes for entry in oldest_first)
    chosen = []
    for entry in oldest_first:
        age_s = max(0.0, now_s - entry.used_s)  # the storage's clock may be ahead of ours
        old = older_than_s is not None and age_s >= older_than_s
        if old or (down_to_bytes is not None and rest > down_to_bytes):
            chosen.append(entry)
            rest -= entry.size_bytes
    return chosen


def delete_entries(entries: Iterable[CacheEntry]) -> tuple[list[CacheEntry], list[str]]:
    """Delete activations, but not those that are being computed, and not those of others.

    Returns:
        What was deleted, and why what was not stays: a line for each, with its folder.

    Raises:
        OSError: the storage does not answer.
    """
    deleted, skipped = [], []
    for entry in entries:
        try:
            # released before the folder is deleted: a renewal would leave its files behind
            with Lease.acquire(entry.location):
                # the index first: without it, the rest of an interrupted deletion does not exist
                storage.delete_file(storage.join(entry.location, INDEX_FILE))
            storage.delete_folder(entry.location)
            deleted.append(entry)
        except (LeaseHeldError, PermissionError) as error:
            skipped.append(str(error))  # it names the folder
    return deleted, skipped


def entries_table(kept: Sequence[CacheEntry], now_s: float) -> str:
    """Activations as aligned lines under a heading, in their order, and a last line with their sum."""
    rows = [_HEADING]
    for entry in kept:
        state, used = "complete" if entry.complete else "incomplete", format_age(now_s - entry.used_s)
        about = (entry.backbone, entry.image_size, entry.cut, entry.views, entry.dtype)
        texts = ("-" if value in ("", None) else str(value) for value in about)
        rows.append((entry.key, *texts, format_size(entry.size_bytes), used, entry.run or "-", state))
    return "\n".join(
        [*align_columns(rows), f"{len(kept)} in all, {format_size(sum(entry.size_bytes for entry in kept))}"]
    )


def _read_entry(root: str, key: str) -> CacheEntry | None:
    """What lies in one folder; None where it has gone meanwhile."""
    location = storage.join(root, key)
    files = _list_files(location)
    if files is None:
        return None
    used = _read_last_use(location)
    newest = max((entry.mtime_ns for entry in files), default=0) / 1e9
    size, used_s, run = sum(entry.size_bytes for entry in files), used.get("used_s", newest), used.get("run", "")
    try:
        about = _index_summary(read_index(location) or {})
    except (LookupError, TypeError, AttributeError, ValueError):  # another version's, or damaged
        return CacheEntry(key, location, size, complete=False, used_s=used_s, run=run)
    return CacheEntry(key, location, size, complete=True, used_s=used_s, run=run, **about)


def _list_files(location: str) -> list[storage.FileEntry] | None:
    """The files of a folder; None where it is gone."""
    try:
        return list(storage.list_files(location))
    except FileNotFoundError:
        return None


def _read_last_use(location: str) -> dict[str, Any]:
    """Time and run of the last use; {} where none is recorded."""
    try:
        value = storage.read_json(storage.join(location, USED_FILE))
        used_s = float(value["used_s"])
        return {"used_s": used_s, "run": str(value.get("run", ""))} if math.isfinite(used_s) else {}
    except (FileNotFoundError, LookupError, TypeError, AttributeError, ValueError):
        return {}


def _index_summary(index: Mapping[str, Any]) -> dict[str, Any]:
    """What an index tells of its activations."""
    parts, layout = index["parts"], ShardLayout.from_dict(index["layout"])
    return {
        "backbone": str(parts["backbone"]),
        "image_size": int(parts["image_size"]),
        "cut": int(parts["cut"]),
        "dtype": str(parts["dtype"]),
        "views": int(parts["augment"]["views"]) if parts["augment"] else 1,
        "pictures": sum(section.rows * section.views for section in layout.sections),
    }
