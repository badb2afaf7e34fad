"""The manifest: one row per image, scanned once per data set, read by everything after.

Rows are sorted by path, so a row number is stable. A bad image is named once, with its reason, and quarantined: its
row stays, its status is no longer "ok".
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from pharmclf import storage
from pharmclf.core.errors import ConfigError
from pharmclf.core.hashing import fingerprint
from pharmclf.core.units import format_examples
from pharmclf.data import duplicates
from pharmclf.data.dataset_listing import DatasetListing, list_dataset
from pharmclf.data.folder_layouts import DEFAULT_LAYOUT_OPTIONS, LayoutOptions
from pharmclf.data.image_decoding import LFS_POINTER, THUMBNAIL_SIDE, decode
from pharmclf.data.image_set import read_verified
from pharmclf.data.list_tables import LIST_EXTENSIONS
from pharmclf.data.pixel_depth import MAX_VALUE, find_white_level
from pharmclf.data.scan import ScanResult, scan_files
from pharmclf.schema_version import SCHEMA_KEY, SCHEMA_VERSION, check_schema_version

OK, LABEL_CONFLICT = "ok", "label conflict"
EXCLUDED = "left out"
"""How the status of a usable image begins whose class the run leaves out."""
ProgressCallback = Callable[[int, int], None]
"""Called with the number of files done and the number of all."""
_METADATA = b"pharmclf.manifest"
_NUMBERS = {"size_bytes": pa.int64(), "width": pa.int32(), "height": pa.int32(), "group": pa.int64()}
_COLUMNS = ("path", "label", "size_bytes", "sha256", "width", "height", "phash", "group", "split", "status")
_SCHEMA = pa.schema([(name, _NUMBERS.get(name, pa.string())) for name in _COLUMNS])


@dataclass(frozen=True)
class Manifest:
    """What a data set is made of."""

    table: pd.DataFrame
    """One row per image, sorted by path, index 0, 1, …: path (absolute, or a URI), label, size_bytes, sha256, width and
    height in pixels, phash (16 hexadecimal digits), group (the smallest row of the copies), split ("" until it is
    made), status ("ok", why the image is quarantined, or why its class is left out)."""
    class_names: tuple[str, ...]
    """Labels of the usable rows, sorted; a class's number is its place here."""
    root: str = ""
    """The folder or prefix that paths are relative to in the fingerprint."""
    notes: list[str] = field(default_factory=list)
    """What a person should know of the data set; one line each."""
    white_level: int = MAX_VALUE
    """The value that is white in its files of 16 bits per channel; `image_decoding.decode` takes it."""

    @functools.cached_property
    def ok(self) -> pd.DataFrame:
        """The usable rows, with their row numbers as index."""
        return self.table[self.table["status"] == OK]

    @functools.cached_property
    def quarantined(self) -> pd.DataFrame:
        """The rows of images that cannot be used, with their row numbers as index."""
        status = self.table["status"]
        return self.table[(status != OK) & ~status.str.startswith(EXCLUDED)]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the usable rows: relative path, label, sha256, group, split; the folder may lie anywhere.

        A white level other than that of full 16 bits is part of it, because it decides the pixels.
        """
        rows, prefix = self.ok, self.root.rstrip("/") + "/"
        paths = [path.removeprefix(prefix) for path in rows["path"]]
        groups = pd.factorize(rows["group"])[0].tolist()
        columns = [rows[name].tolist() for name in ("label", "sha256", "split")]
        levels = [] if self.white_level == MAX_VALUE else [self.white_level]
        return fingerprint([paths, groups, *columns, *levels])

    def rows(self, split: str) -> NDArray[np.int64]:
        """(n,) numbers of the usable rows of a split."""
        return self.ok.index[self.ok["split"] == split].to_numpy(np.int64)

    def with_splits(self, splits: ArrayLike) -> Manifest:
        """The same manifest with the splits of the usable rows, in their order: (usable rows,) text."""
        table = self.table.copy()
        table["split"] = ""
        table.loc[self.ok.index, "split"] = np.asarray(splits).astype(str).astype(object)
        return replace(self, table=table)

    def with_status(self, statuses: Mapping[int, str]) -> Manifest:
        """The same manifest with another status of some rows, by their numbers."""
        table = self.table.copy()
        table.loc[list(statuses), "status"] = list(statuses.values())
        return replace(self, table=table)

    def exclude_classes(self, labels: Iterable[str], reason: str, note: str) -> Manifest:
        """The same manifest without some classes: their rows stay with a status that says why, as bad ones do."""
        left, table = set(labels), self.table.copy()
        rows = (table["status"] == OK) & table["label"].isin(left)
        table.loc[rows, "status"], table.loc[rows, "split"] = f"{EXCLUDED}: {reason}", ""
        names = tuple(name for name in self.class_names if name not in left)
        return replace(self, table=table, class_names=names, notes=[*self.notes, note])

    def write(self, location: str) -> None:
        """Write the manifest as Parquet, whole or not at all."""
        about = {
            SCHEMA_KEY: SCHEMA_VERSION,
            "version": SCHEMA_VERSION,  # for readers older than schema_version
            "root": self.root,
            "class_names": self.class_names,
            "notes": self.notes,
        }
        about |= {} if self.white_level == MAX_VALUE else {"white_level": self.white_level}
        table = pa.Table.from_pandas(self.table, schema=_SCHEMA, preserve_index=False)
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({_METADATA: json.dumps(about).encode()}), buffer)
        storage.write_bytes(location, buffer.getvalue())

    @staticmethod
    def read(location: str) -> Manifest:
        """Read a manifest that `write` has written.

        Raises:
            ConfigError: not there, or not a manifest of this version.
        """
        remedy = "Make it anew with jobs/prepare.py"
        try:
            table = pq.read_table(io.BytesIO(storage.read_bytes(location)))
            about = json.loads((table.schema.metadata or {})[_METADATA])
        except (OSError, KeyError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise ConfigError(f"manifest {location}: expected a manifest: {error!r}. {remedy}") from error
        check_schema_version(about, f"manifest {location}")
        frame = table.select(_SCHEMA.names).replace_schema_metadata(None).to_pandas()
        names, notes = tuple(about["class_names"]), list(about["notes"])
        return Manifest(frame, names, about["root"], notes, int(about.get("white_level", MAX_VALUE)))

    def write_quarantine(self, location: str) -> None:
        """Write the rows that are not used as CSV: path, label, status."""
        unused = self.table[self.table["status"] != OK]
        text = unused[["path", "label", "status"]].to_csv(index=False, lineterminator="\n")
        storage.write_bytes(location, text.encode())


def build_manifest(
    data: str,
    *,
    max_bad_share: float = 1.0,
    progress: ProgressCallback | None = None,
    quarantine: str = "",
    reading: LayoutOptions = DEFAULT_LAYOUT_OPTIONS,
) -> Manifest:
    """Scan a data set: decode every image once, hash it, find what is bad and what are copies.

    Args:
        data: folder or prefix with one folder per class, at any depth, or a CSV or Parquet list: path, label[, group,
            split], paths relative to the list's folder.
        max_bad_share: largest share of quarantined images, 0..1.
        progress: called with (files done, files).
        quarantine: where the list of quarantined images goes when there are too many of them; "": nowhere.
        reading: which folders are labels and splits.

    Raises:
        ConfigError: nothing there, no image, fewer than two classes, or too many bad images.
    """
    return check_invalid_share(scan_listing(list_dataset(data, reading), progress), max_bad_share, quarantine)


def check_invalid_share(manifest: Manifest, max_bad_share: float, quarantine: str = "") -> Manifest:
    """Return the manifest, or refuse it for its bad images, and then write their list to `quarantine`, if given.

    Raises:
        ConfigError: more than `max_bad_share` (0..1) of the images are quarantined.
    """
    bad = manifest.quarantined
    share = len(bad) / max(1, len(manifest.table))
    if share <= max_bad_share:
        return manifest
    if quarantine:
        manifest.write_quarantine(quarantine)
    first = format_examples([f"{row.path}: {row.status}" for row in bad.itertuples()], separator="; ")
    where = f", the whole list is in {quarantine}" if quarantine else ""
    raise ConfigError(
        f"{len(bad)} of {len(manifest.table)} images are bad ({share:.1%}), expected at most {max_bad_share:.1%}: "
        f"{first}{where}. Mend or remove them, or accept more with --max-bad"
    )


def scan_listing(listing: DatasetListing, progress: ProgressCallback | None, min_classes: int = 2) -> Manifest:
    """Read all images of a listing, and decide on the status and the group of each.

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
        size = (scan.probe.width, scan.probe.height, scan.probe.phash) if scan.probe else (0, 0, "")
        rows.append((scan.size_bytes, scan.sha256, *size, scan.status if item.label else "no label"))
        if scan.probe:
            thumbnails[number], largest[number] = scan.probe.thumbnail, scan.probe.largest
            if scan.probe.without_end:
                unended.append(item.relative)
            if scan.probe.wrong_extension:
                wrong.append(item.relative)
    next(scans, None)  # reports the last files as done
    table[["size_bytes", "sha256", "width", "height", "phash", "status"]] = pd.DataFrame(rows)
    labels_of_content = table[table["status"] == OK].groupby("sha256")["label"].nunique()
    conflicts = table["sha256"].isin(labels_of_content.index[labels_of_content > 1]) & (table["status"] == OK)
    table.loc[conflicts, "status"] = LABEL_CONFLICT
    if wrong:
        notes.append(
            f"{len(wrong)} images of another format than their name says, read all the same: {format_examples(wrong)}"
        )
    if unended:
        notes.append(f"{len(unended)} JPEGs without their end mark, read all the same: {format_examples(unended)}")
    white_level = _find_white_level(table, thumbnails, largest, notes)
    notes += (reasons := _missing_files_note(table))
    used = table[table["status"] == OK]
    class_names = tuple(sorted(used["label"].unique()))
    lost = sorted(set(table["label"]) - set(class_names) - {""})
    if lost:
        notes.append(f"classes without a usable image: {format_examples(lost)}")
    if len(class_names) < min_classes:
        reason = f": {'; '.join(reasons)}" if reasons else f", {table['path'].iloc[0]}: {table['status'].iloc[0]}"
        found = f"only the class {class_names[0]!r}" if class_names else f"{len(table)} images and all bad{reason}"
        expected = "two classes or more" if min_classes > 1 else "a class"
        is_list = listing.data.lower().endswith(LIST_EXTENSIONS)
        otherwise = "Mend the list" if is_list else "Give the folder that holds the class folders"
        remedy = "Fetch the files" if reasons else otherwise
        raise ConfigError(f"--data {listing.data}: received {found}; expected usable images of {expected}. {remedy}")
    table["group"] = _group_rows(table, thumbnails, [i.group for i in items], notes, white_level)
    table["split"] = [i.split for i in items]
    return Manifest(table[list(_COLUMNS)], class_names, listing.root, notes, white_level)


def _missing_files_note(table: pd.DataFrame) -> list[str]:
    """What is said of files that are not there yet: pointers of Git LFS, and links such as those of git-annex."""
    lines = []
    for status, what in (
        (LFS_POINTER, "files are Git LFS pointers: run git lfs pull"),
        (storage.BROKEN_LINK, "links point nowhere"),
    ):
        paths = table["path"][table["status"] == status]
        if len(paths):
            lines.append(f"{len(paths)} {what}, the first: {paths.iloc[0]}")
    return lines


def _find_white_level(
    table: pd.DataFrame, thumbnails: NDArray[np.uint8], largest: NDArray[np.int64], notes: list[str]
) -> int:
    """The white level of the usable images of 16 bits; where it is not the common one, they are probed once more."""
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
        if scan.probe:
            thumbnails[row] = scan.probe.thumbnail
            table.loc[row, "phash"] = scan.probe.phash
    return level


def _group_rows(
    table: pd.DataFrame, thumbnails: NDArray[np.uint8], given: list[str], notes: list[str], white_level: int
) -> NDArray[np.int64]:
    """The group of each row, and notes on copies: joined are these, and rows of one group of the list; not bad rows.

    Near copies in two groups of the list are not joined: images of a camera that does not move differ by less than
    copies of one image do, and only who made the list knows which of them show the same thing.
    """
    ok = (table["status"] == OK).to_numpy()
    equal = duplicates.equal_pairs(table["sha256"].where(ok, "").tolist())
    rows = np.setdiff1d(np.flatnonzero(ok), [other for _, other in equal])  # one row of each content
    hashes = np.array([int(text, 16) for text in table["phash"].iloc[rows]], dtype=np.uint64)
    paths, labels, sums = (table[name].tolist() for name in ("path", "label", "sha256"))

    def load(place: int) -> NDArray[np.uint8]:
        content = read_verified(paths[rows[place]], sums[rows[place]])
        return decode(content, duplicates.CHECK_SIDE, white_level)

    found = duplicates.near_pairs(hashes, thumbnails[rows], load)
    near = [(int(rows[one]), int(rows[other])) for one, other in found]
    apart = [(one, other) for one, other in near if given[one] and given[other] and given[one] != given[other]]
    if apart:
        near = sorted({*near} - {*apart})
        notes.append(
            f"{len(apart)} pairs of near copies are in different groups of the list, so that splits may part them: "
            f"{paths[apart[0][0]]} and {paths[apart[0][1]]}"
        )
    mixed = [f"{paths[one]} and {paths[other]}" for one, other in near if labels[one] != labels[other]]
    if equal or near:
        copies = len({other for _, other in equal + near})
        notes.append(f"{copies} images are copies of others ({len(equal)} byte for byte); copies share a split")
    if mixed:
        notes.append(f"{len(mixed)} pairs of near copies have different labels, please check: {format_examples(mixed)}")
    wanted = duplicates.equal_pairs([group if good else "" for group, good in zip(given, ok, strict=True)])
    return duplicates.group_rows(len(table), equal + near + wanted)
