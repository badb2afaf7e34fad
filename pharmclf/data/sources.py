"""Where images come from: class folders, or a list of paths and labels; nothing is read yet but names."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.data.image_files import find_images, is_leftover, relative_to
from pharmclf.data.layouts import PLAIN_READING, Layout, Reading, merge_labels, read_folders
from pharmclf.data.splits import SPLITS
from pharmclf.fingerprint import fingerprint

_SCAN_VERSION = 2  # raise it when a scan would find something else than before: caches are then made anew
_LISTS = (".csv", ".parquet")


@dataclass(frozen=True)
class Item:
    """One image of a listing, not read yet."""

    location: str
    relative: str
    """Path below the root of the listing; decides the order."""
    label: str
    size_bytes: int
    mtime_ns: int
    group: str = ""
    split: str = ""
    status: str = ""
    """Why it cannot be read; "" where that is not known yet."""


@dataclass(frozen=True)
class Listing:
    """What is to be scanned."""

    data: str
    root: str
    items: list[Item]
    notes: list[str]

    @property
    def key(self) -> str:
        """Fingerprint of names, sizes and times, labels and all else that decides the manifest."""
        rows = [[i.relative, i.size_bytes, i.mtime_ns, i.label, i.group, i.split, i.status] for i in self.items]
        return fingerprint([_SCAN_VERSION, self.root, self.notes, rows])


def list_data(data: str, reading: Reading = PLAIN_READING) -> Listing:
    """List a data set without reading its images; items are sorted by relative path.

    Args:
        data: folder, prefix or list.
        reading: which folders are labels and splits, and which are not listed.

    Raises:
        ConfigError: nothing there, no image, a list that is none, or folders that can be read in two ways.
        StorageUnavailable: the storage does not answer.
    """
    root = data.rstrip("/") if storage.is_remote(data) else os.path.abspath(storage.absolute(data))
    try:
        listing = _list_table(data, root) if storage.is_file(root) else _list_folders(data, root, reading)
    except storage.StorageUnavailable:
        raise
    except OSError as error:
        reason = " ".join(str(error).split()).removeprefix(f"{root}: ")
        reason = "nothing there" if reason == root else reason
        raise ConfigError(f"--data {data}: {reason}. Give a readable folder, s3:// prefix or list") from error
    labels, notes = merge_labels([item.label for item in listing.items], reading.classes)
    items = listing.items
    if labels:  # two rows of a list may be the same now
        items = list(dict.fromkeys(replace(item, label=labels.get(item.label, item.label)) for item in items))
    return replace(listing, items=items, notes=listing.notes + notes)


def _list_folders(data: str, root: str, reading: Reading) -> Listing:
    """Items of a folder or prefix."""
    found = find_images(root, reading.results)
    places = [(relative_to(root, entry.location), entry) for entry in found.images]
    folders = {place: tuple(part for part in place.split("/")[:-1] if part) for place, _ in places}
    counts = Counter(folder for folder in folders.values() if folder)
    layout = read_folders(data, counts, reading) if counts else Layout({}, {}, [])
    items, loose = [], 0
    for place, entry in places:
        label = layout.labels.get(folders[place], "")
        if not label:
            loose += 1
            continue
        about = (entry.size_bytes, entry.mtime_ns, "", layout.splits[folders[place]], entry.unreadable)
        items.append(Item(entry.location, place, label, *about))
    notes = [*found.notes, *([f"files not read, images outside any class folder: {loose}"] if loose else [])]
    if not items:
        seen = f"found: {'; '.join(notes)}" if notes else "it is empty"
        raise ConfigError(f"--data {data}: no image in a class folder ({seen}). Expected <class>/<image>.jpg")
    if not storage.is_remote(root):  # object stores have no empty folders
        notes += _empty_folders(root, items, found.left_out)
    items.sort(key=lambda item: item.relative)
    return Listing(data, root, items, notes + layout.notes)


def _empty_folders(root: str, items: list[Item], left_out: Collection[str]) -> list[str]:
    """A note for each folder beside those of the items in which no image lies."""
    notes = []
    folders = {item.relative.rpartition("/")[0] for item in items}
    for parent in sorted({folder.rpartition("/")[0] for folder in folders}):
        for name in storage.list_folders(storage.join(root, parent) if parent else root):
            folder = storage.displayed(f"{parent}/{name}".lstrip("/"))
            known = any(f"{known}/".startswith(f"{folder}/") for known in folders)
            if not known and not is_leftover(folder) and folder not in left_out:
                notes.append(f"folder without images: {folder}")
    return notes


def _list_table(data: str, root: str) -> Listing:
    """Items of a CSV or Parquet list."""
    if not root.lower().endswith(_LISTS):
        raise ConfigError(f"--data {data}: received a file, expected a folder, or a list that ends in .csv or .parquet")
    content = io.BytesIO(storage.read_bytes(root))
    try:
        if root.lower().endswith(".csv"):
            frame = pd.read_csv(content, dtype=str, keep_default_na=False)
        else:
            frame = pq.read_table(content).to_pandas()
    except (ValueError, pa.ArrowException) as error:
        raise ConfigError(f"--data {data}: not a list: {str(error).splitlines()[0]}") from error
    missing = [name for name in ("path", "label") if name not in frame]
    if missing:
        names = ", ".join(map(str, frame.columns))
        raise ConfigError(f"--data {data}: no column {' and '.join(missing)}; expected path, label, found: {names}")
    cells = frame.reindex(columns=["path", "label", "group", "split"]).itertuples(index=False)
    rows = [tuple("" if pd.isna(cell) else str(cell).strip() for cell in row) for row in cells]
    folder = root.rpartition("/")[0]
    unique = sorted(set(rows))
    notes = [f"{len(rows) - len(unique)} rows stand in the list twice; used once"] if len(rows) > len(unique) else []
    for number, (path, _, _, split) in enumerate(rows, start=1):
        if not path:
            raise ConfigError(f"--data {data}: row {number} has no path. Fill it in, or remove the row")
        if split not in ("", *SPLITS):
            raise ConfigError(f"--data {data}: row {number}: split {split!r}, expected {', '.join(SPLITS)} or nothing")
    locations = [_resolve(folder, row[0]) for row in unique]
    known = _describe(locations)
    items = [
        Item(location, location.removeprefix(folder + "/"), label, *known.get(location, (0, 0)), group, split)
        for location, (_, label, group, split) in zip(locations, unique, strict=True)
    ]
    if not items:
        raise ConfigError(f"--data {data}: the list has no row. Expected one row per image: path, label")
    items.sort(key=lambda item: (item.relative, item.label))
    return Listing(data, folder, items, notes)


def _resolve(folder: str, path: str) -> str:
    """A path of a list as a location: as it is, or relative to the list's folder."""
    if storage.is_remote(path) or (storage.is_remote(folder) and not path.startswith("/")):
        return path if storage.is_remote(path) else storage.join(folder, path)
    return os.path.normpath(os.path.join(folder, path))


def _describe(locations: list[str]) -> dict[str, tuple[int, int]]:
    """Size and time of files, as far as they are there; remote ones by one listing per bucket."""
    known, buckets = {}, dict[str, list[str]]()
    for location in locations:
        if storage.is_remote(location):
            buckets.setdefault("/".join(location.split("/", 3)[:3]), []).append(location)
        elif os.path.isfile(location):
            known[location] = (os.stat(location).st_size, os.stat(location).st_mtime_ns)
    for bucket, members in buckets.items():
        common = os.path.commonpath([member.removeprefix(bucket).rpartition("/")[0] for member in members])
        found = storage.list_files(storage.join(bucket, common))
        known |= {entry.location: (entry.size_bytes, entry.mtime_ns) for entry in found}
    return known
