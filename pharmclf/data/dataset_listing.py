"""Lists the images of a data set, from class folders or a list of paths and labels, without reading them."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

from pharmclf import storage
from pharmclf.core.errors import ConfigError
from pharmclf.core.hashing import fingerprint
from pharmclf.data.folder_layouts import (
    DEFAULT_LAYOUT_OPTIONS,
    FolderLayout,
    LayoutOptions,
    merge_labels,
    parse_folders,
)
from pharmclf.data.image_files import find_images, is_system_file, relative_path
from pharmclf.data.list_files import locate_files, not_found_message, refusing_unreadable
from pharmclf.data.list_tables import LIST_EXTENSIONS, ListTable, parse_split, read_list
from pharmclf.data.splits import SPLITS

_WHOLE_NUMBER = re.compile(r"-?\d+\.0")
_SCAN_VERSION = 2  # raise it with a change of what a scan finds, so that cached manifests are made again


@dataclass(frozen=True)
class ImageEntry:
    """One image of a listing."""

    location: str
    relative: str
    """Path below the root of the listing; the sort key."""
    label: str
    size_bytes: int
    mtime_ns: int
    group: str = ""
    split: str = ""
    status: str = ""
    """Why it cannot be read; "": unknown."""


@dataclass(frozen=True)
class DatasetListing:
    """The images of a data set."""

    data: str
    root: str
    items: list[ImageEntry]
    notes: list[str]

    @property
    def key(self) -> str:
        """Fingerprint of names, sizes, times, labels and everything else that decides the manifest."""
        rows = [[i.relative, i.size_bytes, i.mtime_ns, i.label, i.group, i.split, i.status] for i in self.items]
        return fingerprint([_SCAN_VERSION, self.root, self.notes, rows])


def list_dataset(data: str, reading: LayoutOptions = DEFAULT_LAYOUT_OPTIONS) -> DatasetListing:
    """List a data set without reading its images, sorted by relative path.

    Args:
        data: folder, prefix or list.
        reading: which folders are labels and splits, and which are left out.

    Raises:
        ConfigError: nothing there, no image, an unreadable list, or folders that can be read in two ways.
        StorageUnavailableError: the storage does not answer.
    """
    root = data.rstrip("/") if storage.is_remote(data) else os.path.abspath(storage.absolute(data))
    with refusing_unreadable("--data", data, root):
        listing = _list_table(data, root) if storage.is_file(root) else _list_folders(data, root, reading)
    labels, notes = merge_labels([item.label for item in listing.items], reading.classes)
    items = listing.items
    if labels:  # two rows of a list may be equal now
        items = list(dict.fromkeys(replace(item, label=labels.get(item.label, item.label)) for item in items))
    return replace(listing, items=items, notes=listing.notes + notes)


def _list_table(data: str, root: str) -> DatasetListing:
    """List the images of a CSV or Parquet list; refuse an unknown split, and a list none of whose files exists."""
    source = f"--data {data}"
    if not root.lower().endswith(LIST_EXTENSIONS):
        raise ConfigError(f"{source}: received a file, expected a folder, or a list that ends in .csv or .parquet")
    listed = read_list(source, root, ("path", "label"), ("group", "split"))
    folder, notes = storage.parent(root), listed.notes
    paths, labels, groups = listed.cells("path"), _parse_labels(listed.cells("label"), notes), listed.cells("group")
    splits = _parse_splits(source, listed, notes)
    locations, known, file_notes = locate_files(source, folder, paths)
    if not known.keys() & set(locations):
        raise ConfigError(f"{source}: {not_found_message(folder, paths)}")
    rows = list(zip(locations, labels, groups, splits, strict=True))
    unique = sorted(set(rows))
    notes += file_notes
    if len(rows) > len(unique):
        notes.append(f"rows that repeat another row of the list, used once: {len(rows) - len(unique)}")
    if any(groups):
        notes.append(
            "the list's groups decide which rows share a split, also where images of two groups are near copies"
        )
    entries = [
        ImageEntry(location, relative_path(folder, location), label, *known.get(location, (0, 0)), group, split)
        for location, label, group, split in unique
    ]
    entries.sort(key=lambda entry: (entry.relative, entry.label))
    return DatasetListing(data, folder, entries, notes)


def _list_folders(data: str, root: str, reading: LayoutOptions) -> DatasetListing:
    """List the images of a folder or prefix."""
    files = find_images(root, reading.results)
    paths = [(relative_path(root, entry.location), entry) for entry in files.images]
    folders = {path: tuple(part for part in path.split("/")[:-1] if part) for path, _ in paths}
    counts = Counter(folder for folder in folders.values() if folder)
    layout = parse_folders(data, counts, reading) if counts else FolderLayout({}, {}, [])
    items, loose = [], 0
    for path, entry in paths:
        label = layout.labels.get(folders[path], "" if folders[path] else reading.loose_label)
        if not label:
            loose += 1
            continue
        split = layout.splits.get(folders[path], "")
        stat = (entry.size_bytes, entry.mtime_ns)
        items.append(ImageEntry(entry.location, path, label, *stat, split=split, status=entry.unreadable))
    notes = [*files.notes, *([f"files not read, images outside any class folder: {loose}"] if loose else [])]
    if not items:
        seen = f"found: {'; '.join(notes)}" if notes else "it is empty"
        raise ConfigError(f"--data {data}: no image in a class folder ({seen}). Expected <class>/<image>.jpg")
    if not storage.is_remote(root):  # object stores have no empty folders
        notes += _empty_folder_notes(root, items, files.left_out)
    items.sort(key=lambda item: item.relative)
    return DatasetListing(data, root, items, notes + layout.notes)


def _empty_folder_notes(root: str, items: list[ImageEntry], left_out: Collection[str]) -> list[str]:
    """A note for each sibling of the class folders that has no image."""
    notes = []
    folders = {item.relative.rpartition("/")[0] for item in items}
    occupied = set(itertools.chain.from_iterable(itertools.accumulate(f.split("/"), "{}/{}".format) for f in folders))
    for parent in sorted({folder.rpartition("/")[0] for folder in folders}):
        for name in storage.list_folders(storage.join(root, parent) if parent else root):
            folder = storage.displayed(f"{parent}/{name}".lstrip("/"))
            if folder not in occupied and not is_system_file(folder) and folder not in left_out:
                notes.append(f"folder without images: {folder}")
    return notes


def _parse_labels(cells: list[str], notes: list[str]) -> list[str]:
    if not all(_WHOLE_NUMBER.fullmatch(cell) for cell in cells if cell) or not any(cells):
        return cells
    notes.append(f"labels are whole numbers written as {next(filter(None, cells))}; read without .0")
    return [cell.removesuffix(".0") for cell in cells]


def _parse_splits(source: str, listed: ListTable, notes: list[str]) -> list[str]:
    cells, splits = listed.cells("split"), list[str]()
    for number, cell in enumerate(cells, start=1):
        split = parse_split(cell)
        if split is None:
            expected = ", ".join(SPLITS)
            raise ConfigError(f"{source}: row {number}: split {cell!r}, expected {expected} or nothing")
        splits.append(split)
    words = Counter((cell, split) for cell, split in zip(cells, splits, strict=True) if cell != split)
    if words:
        notes.append(f"splits of the list: {', '.join(f'{cell} read as {split}' for cell, split in sorted(words))}")
    return splits
