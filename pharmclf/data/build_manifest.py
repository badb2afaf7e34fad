"""Builds a manifest: decodes every image of a listing once, and finds bad images, copies and the white level."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pharmclf import storage
from pharmclf.core.console import show_activity
from pharmclf.core.errors import ConfigError
from pharmclf.core.units import format_count, format_examples
from pharmclf.data import duplicates
from pharmclf.data.dataset_listing import DatasetListing
from pharmclf.data.decoded_image import THUMBNAIL_SIDE
from pharmclf.data.image_decoding import LFS_POINTER, decode
from pharmclf.data.image_set import read_verified
from pharmclf.data.list_tables import LIST_EXTENSIONS
from pharmclf.data.manifest import COLUMNS, OK, Manifest
from pharmclf.data.pixel_depth import MAX_VALUE, find_white_level
from pharmclf.data.scan import ProgressCallback, ScanResult, scan_files

LABEL_CONFLICT = "label conflict"


def scan_listing(listing: DatasetListing, progress: ProgressCallback | None, min_classes: int = 2) -> Manifest:
    """Read all images of a listing, and decide on the status and the group of each.

    Args:
        min_classes: fewer classes with usable images are refused.

    Raises:
        ConfigError: usable images of fewer classes than `min_classes`.
    """
    items, notes = listing.items, list(listing.notes)
    table = pd.DataFrame({"path": [i.location for i in items], "label": [i.label for i in items]})
    thumbnails = np.zeros((len(items), THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8)
    rows, wrong, unended = [], [], []
    largest = np.zeros(len(items), np.int64)  # values of files of 16 bits
    scans = scan_files([i.location for i in items if not i.status], progress)
    for number, item in enumerate(items):
        scan = ScanResult(item.status, item.size_bytes) if item.status else next(scans)
        info = scan.info
        size = (info.width, info.height, info.phash) if info else (0, 0, "")
        rows.append((scan.size_bytes, scan.sha256, *size, scan.status if item.label else "no label"))
        if info:
            thumbnails[number], largest[number] = info.thumbnail, info.largest
            if info.without_end:
                unended.append(item.relative)
            if info.wrong_extension:
                wrong.append(item.relative)
    next(scans, None)  # reports the last files as done
    table[["size_bytes", "sha256", "width", "height", "phash", "status"]] = pd.DataFrame(rows)
    _mark_label_conflicts(table)
    if wrong:
        notes.append(
            f"of another format than their name says, read nevertheless: {format_count(len(wrong), 'image')}, "
            f"{format_examples(wrong)}"
        )
    if unended:
        notes.append(f"{len(unended)} JPEGs without their end marker, read nevertheless: {format_examples(unended)}")
    white_level = _find_white_level(table, thumbnails, largest, notes)
    notes += (missing := _missing_file_notes(table))
    class_names = tuple(sorted(table[table["status"] == OK]["label"].unique()))
    if unused := sorted(set(table["label"]) - set(class_names) - {""}):
        notes.append(f"classes without a usable image: {format_examples(unused)}")
    if len(class_names) < min_classes:
        raise _too_few_classes(listing.data, table, class_names, missing, min_classes)
    table["group"] = _group_rows(table, thumbnails, [i.group for i in items], notes, white_level)
    table["split"] = [i.split for i in items]
    return Manifest(table[list(COLUMNS)], class_names, listing.root, notes, white_level)


def _mark_label_conflicts(table: pd.DataFrame) -> None:
    """Quarantine files of equal bytes with different labels; the status of each names one of the others."""
    usable = table[table["status"] == OK]
    mixed = usable[usable.groupby("sha256")["label"].transform("nunique") > 1]
    named = mixed.groupby("sha256")[["path", "label"]].transform("first")
    is_other = mixed["label"] != named["label"]
    others = mixed[is_other].drop_duplicates("sha256").set_index("sha256")
    for name in named:  # the first file's label is that of the file itself
        named[name] = named[name].where(is_other, mixed["sha256"].map(others[name]))
    table.loc[mixed.index, "status"] = [
        f"{LABEL_CONFLICT}: the same file as {path}, which is {label!r}"
        for path, label in named.itertuples(index=False, name=None)
    ]


def _too_few_classes(
    data: str, table: pd.DataFrame, class_names: tuple[str, ...], missing: list[str], min_classes: int
) -> ConfigError:
    reason = f": {'; '.join(missing)}" if missing else f", {table['path'].iloc[0]}: {table['status'].iloc[0]}"
    received = (
        f"only the class {class_names[0]!r}" if class_names else f"{format_count(len(table), 'image')}, all bad{reason}"
    )
    expected = "two classes or more" if min_classes > 1 else "a class"
    is_list = data.lower().endswith(LIST_EXTENSIONS)
    remedy = "Correct the list" if is_list else "Give the folder that holds the class folders"
    remedy = "Fetch the files" if missing else remedy
    return ConfigError(f"--data {data}: received {received}; expected usable images of {expected}. {remedy}")


def _missing_file_notes(table: pd.DataFrame) -> list[str]:
    """Notes on files that are not downloaded: pointers of Git LFS, and links such as those of git-annex."""
    notes = []
    for status, text in (
        (LFS_POINTER, "files are Git LFS pointers: run git lfs pull"),
        (storage.BROKEN_LINK, "links point nowhere"),
    ):
        paths = table["path"][table["status"] == status]
        if len(paths):
            notes.append(f"{len(paths)} {text}, the first: {paths.iloc[0]}")
    return notes


def _find_white_level(
    table: pd.DataFrame, thumbnails: NDArray[np.uint8], largest: NDArray[np.int64], notes: list[str]
) -> int:
    """The white level of the usable images of 16 bits; where it is not `MAX_VALUE`, they are described again."""
    wide = np.flatnonzero((table["status"] == OK).to_numpy() & (largest > 0))
    level = find_white_level(int(largest[wide].max(initial=0)))
    if level == MAX_VALUE:
        dark = [str(table["path"].iloc[row]) for row in wide if find_white_level(int(largest[row])) < MAX_VALUE // 8]
        if dark:
            most = f"others use up to {largest[wide].max()}"
            notes.append(
                f"{len(dark)} images of 16 bit use only 0..4095 and are read as dark, since {most}: "
                f"{format_examples(dark)}"
            )
        return level
    notes.append(f"{len(wide)} images of 16 bit use only 0..{level}: read as {level.bit_length()} bit")
    for row, scan in zip(wide, scan_files(table["path"].iloc[wide].tolist(), None, level), strict=True):
        if scan.info:
            thumbnails[row] = scan.info.thumbnail
            table.loc[row, "phash"] = scan.info.phash
    return level


def _group_rows(
    table: pd.DataFrame, thumbnails: NDArray[np.uint8], given: list[str], notes: list[str], white_level: int
) -> NDArray[np.int64]:
    """Group the usable rows that are copies, or that the list puts into one group; add notes on copies.

    Near copies in two groups of the list are not joined: images of a fixed camera differ by less than copies of one
    image do, and only the author of the list knows which of them show the same object.
    """
    ok = (table["status"] == OK).to_numpy()
    equal = duplicates.equal_pairs(table["sha256"].where(ok, "").tolist())
    rows = np.setdiff1d(np.flatnonzero(ok), [other for _, other in equal])  # one row of each content
    hashes = np.array([int(text, 16) for text in table["phash"].iloc[rows]], dtype=np.uint64)
    paths, labels, sums = (table[name].tolist() for name in ("path", "label", "sha256"))

    def load(place: int) -> NDArray[np.uint8]:
        content = read_verified(paths[rows[place]], sums[rows[place]])
        return decode(content, duplicates.CHECK_SIDE, white_level)

    with show_activity("searching for near copies"):
        pairs = duplicates.near_pairs(hashes, thumbnails[rows], load)
    near = [(int(rows[one]), int(rows[other])) for one, other in pairs]
    apart = [(one, other) for one, other in near if given[one] and given[other] and given[one] != given[other]]
    if apart:
        near = sorted({*near} - {*apart})
        notes.append(
            f"{len(apart)} pairs of near copies are in different groups of the list, so that splits may separate them: "
            f"{paths[apart[0][0]]} and {paths[apart[0][1]]}"
        )
    mixed = [f"{paths[one]} and {paths[other]}" for one, other in near if labels[one] != labels[other]]
    if equal or near:
        copies = len({other for _, other in equal + near})
        notes.append(f"copies of other images: {copies:,} ({len(equal):,} byte for byte); copies share a split")
    if mixed:
        notes.append(f"{len(mixed)} pairs of near copies have different labels, please check: {format_examples(mixed)}")
    grouped = duplicates.equal_pairs([group if good else "" for group, good in zip(given, ok, strict=True)])
    return duplicates.group_rows(len(table), equal + near + grouped)
