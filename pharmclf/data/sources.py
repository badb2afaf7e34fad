"""Where images come from: class folders, or a list of paths and labels; nothing is read yet but names."""

from __future__ import annotations

import io
import os
from collections import Counter
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.data.demo import MARKER
from pharmclf.data.images import IMAGE_EXTENSIONS
from pharmclf.data.splits import SPLITS
from pharmclf.fingerprint import fingerprint

_SCAN_VERSION = 2  # raise it when a scan would find something else than before: caches are then made anew
_HIDDEN = (".", "__MACOSX")
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
        rows = [[i.relative, i.size_bytes, i.mtime_ns, i.label, i.group, i.split] for i in self.items]
        return fingerprint([_SCAN_VERSION, self.root, self.notes, rows])


def list_data(data: str) -> Listing:
    """List a data set without reading its images; items are sorted by relative path.

    Raises:
        ConfigError: nothing there, no image, or a list that is none.
        StorageUnavailable: the storage does not answer.
    """
    root = data.rstrip("/") if storage.is_remote(data) else os.path.abspath(storage.absolute(data))
    try:
        if storage.is_file(root):
            return _list_table(data, root)
        entries = list(storage.list_files(root))
    except storage.StorageUnavailable:
        raise
    except OSError as error:
        reason = " ".join(str(error).split()).removeprefix(f"{root}: ")
        reason = "nothing there" if reason == root else reason
        raise ConfigError(f"--data {data}: {reason}. Give a readable folder, s3:// prefix or list") from error
    items, skipped, hidden, loose = [], Counter[str](), 0, 0
    for entry in entries:
        relative = entry.location[len(root) + 1 :]
        folder, _, name = relative.rpartition("/")
        extension = os.path.splitext(name)[1].lower()
        if relative == MARKER:  # the tool's own
            continue
        if any(part.startswith(_HIDDEN) for part in relative.split("/")):
            hidden += 1
        elif extension not in IMAGE_EXTENSIONS:
            skipped[extension or "without extension"] += 1
        elif not folder:
            loose += 1
        else:
            label = folder.rpartition("/")[2]
            items.append(Item(entry.location, relative, label, entry.size_bytes, entry.mtime_ns))
    kinds = ", ".join(f"{count} {extension}" for extension, count in skipped.most_common(10))
    counts = {"hidden": hidden, f"of other types ({kinds})": skipped.total(), "images outside any class folder": loose}
    notes = [f"files not read, {what}: {count}" for what, count in counts.items() if count]
    if not items:
        found = f"found: {'; '.join(notes)}" if notes else "it is empty"
        raise ConfigError(f"--data {data}: no image in a class folder ({found}). Expected <class>/<image>.jpg")
    if not storage.is_remote(root):  # object stores have no empty folders
        notes += _empty_folders(root, items)
    items.sort(key=lambda item: item.relative)
    return Listing(data, root, items, notes)


def _empty_folders(root: str, items: list[Item]) -> list[str]:
    """A note for each folder beside those of the items in which no image lies."""
    notes = []
    folders = {item.relative.rpartition("/")[0] for item in items}
    for parent in sorted({folder.rpartition("/")[0] for folder in folders}):
        for name in storage.list_folders(storage.join(root, parent) if parent else root):
            folder = f"{parent}/{name}".lstrip("/")
            if not name.startswith(_HIDDEN) and not any(f"{known}/".startswith(f"{folder}/") for known in folders):
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
