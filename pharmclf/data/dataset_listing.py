"""Where images come from: class folders, or a list of paths and labels; nothing is read yet but names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

from pharmclf import storage
from pharmclf.core.errors import ConfigError, single_line
from pharmclf.core.hashing import fingerprint
from pharmclf.data.folder_layouts import (
    DEFAULT_LAYOUT_OPTIONS,
    FolderLayout,
    LayoutOptions,
    merge_labels,
    parse_folders,
)
from pharmclf.data.image_files import find_images, is_system_file, relative_path
from pharmclf.data.list_tables import list_labelled_images

_SCAN_VERSION = 2  # raise it when a scan would find something else than before: caches are then made anew


@dataclass(frozen=True)
class ImageEntry:
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
class DatasetListing:
    """What is to be scanned."""

    data: str
    root: str
    items: list[ImageEntry]
    notes: list[str]

    @property
    def key(self) -> str:
        """Fingerprint of names, sizes and times, labels and all else that decides the manifest."""
        rows = [[i.relative, i.size_bytes, i.mtime_ns, i.label, i.group, i.split, i.status] for i in self.items]
        return fingerprint([_SCAN_VERSION, self.root, self.notes, rows])


def list_dataset(data: str, reading: LayoutOptions = DEFAULT_LAYOUT_OPTIONS) -> DatasetListing:
    """List a data set without reading its images; items are sorted by relative path.

    Args:
        data: folder, prefix or list.
        reading: which folders are labels and splits, and which are not listed.

    Raises:
        ConfigError: nothing there, no image, a list that is none, or folders that can be read in two ways.
        StorageUnavailableError: the storage does not answer.
    """
    root = data.rstrip("/") if storage.is_remote(data) else os.path.abspath(storage.absolute(data))
    try:
        listing = _list_table(data, root) if storage.is_file(root) else _list_folders(data, root, reading)
    except storage.StorageUnavailableError:
        raise
    except OSError as error:
        reason = single_line(error).removeprefix(f"{root}: ")
        reason = "nothing there" if reason == root else reason
        raise ConfigError(f"--data {data}: {reason}. Give a readable folder, s3:// prefix or list") from error
    labels, notes = merge_labels([item.label for item in listing.items], reading.classes)
    items = listing.items
    if labels:  # two rows of a list may be the same now
        items = list(dict.fromkeys(replace(item, label=labels.get(item.label, item.label)) for item in items))
    return replace(listing, items=items, notes=listing.notes + notes)


def _list_table(data: str, root: str) -> DatasetListing:
    """Items of a CSV or Parquet list."""
    folder, rows, notes = list_labelled_images(data, root)
    return DatasetListing(data, folder, [ImageEntry(*row) for row in rows], notes)


def _list_folders(data: str, root: str, reading: LayoutOptions) -> DatasetListing:
    """Items of a folder or prefix."""
    found = find_images(root, reading.results)
    places = [(relative_path(root, entry.location), entry) for entry in found.images]
    folders = {place: tuple(part for part in place.split("/")[:-1] if part) for place, _ in places}
    counts = Counter(folder for folder in folders.values() if folder)
    layout = parse_folders(data, counts, reading) if counts else FolderLayout({}, {}, [])
    items, loose = [], 0
    for place, entry in places:
        label = layout.labels.get(folders[place], "")
        if not label:
            loose += 1
            continue
        about = (entry.size_bytes, entry.mtime_ns, "", layout.splits[folders[place]], entry.unreadable)
        items.append(ImageEntry(entry.location, place, label, *about))
    notes = [*found.notes, *([f"files not read, images outside any class folder: {loose}"] if loose else [])]
    if not items:
        seen = f"found: {'; '.join(notes)}" if notes else "it is empty"
        raise ConfigError(f"--data {data}: no image in a class folder ({seen}). Expected <class>/<image>.jpg")
    if not storage.is_remote(root):  # object stores have no empty folders
        notes += _empty_folder_notes(root, items, found.left_out)
    items.sort(key=lambda item: item.relative)
    return DatasetListing(data, root, items, notes + layout.notes)


def _empty_folder_notes(root: str, items: list[ImageEntry], left_out: Collection[str]) -> list[str]:
    """A note for each folder beside those of the items in which no image lies."""
    notes = []
    folders = {item.relative.rpartition("/")[0] for item in items}
    for parent in sorted({folder.rpartition("/")[0] for folder in folders}):
        for name in storage.list_folders(storage.join(root, parent) if parent else root):
            folder = storage.displayed(f"{parent}/{name}".lstrip("/"))
            known = any(f"{known}/".startswith(f"{folder}/") for known in folders)
            if not known and not is_system_file(folder) and folder not in left_out:
                notes.append(f"folder without images: {folder}")
    return notes
