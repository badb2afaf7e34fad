"""The images to predict, listed without class folders. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from pharmclf import storage
from pharmclf.core.errors import ConfigError
from pharmclf.data.image_decoding import IMAGE_EXTENSIONS
from pharmclf.data.image_files import find_images
from pharmclf.data.list_files import locate_files, not_found_message, refusing_unreadable, stat_files
from pharmclf.data.list_tables import LIST_EXTENSIONS, read_list
from pharmclf.inference.output_table import SCHEMA


@dataclass(frozen=True, eq=False)
class ImageListing:
    """What is to be predicted: images of a folder sorted by path, images of a list in the list's order."""

    paths: pa.Array
    """(n,) locations."""
    sizes_bytes: np.ndarray
    """(n,) int64; 0 where the file is not there."""
    mtimes_ns: np.ndarray
    """(n,) int64: time of the last change, nanoseconds since 1970."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""
    unreadable: Mapping[int, str] = field(default_factory=dict)
    """Place of an image that is not read -> why."""
    columns: pa.Table | None = None
    """(n,) rows of the other columns of a list, with names that the table of predictions does not have."""
    columns_key: str = ""
    """Changes with `columns`; "" where there are none."""

    def __len__(self) -> int:
        return len(self.paths)


def list_images(where: str) -> ImageListing:
    """List images without reading them.

    Args:
        where: a folder or prefix, of which all images at any depth are taken; an image; or a .csv or .parquet list with
            a column `path`: locations, or paths relative to the list. Local or s3://.

    Returns:
        The images; a row of a list whose image is not there is kept, since its answer says so.

    Raises:
        ConfigError: nothing there, no image, or a list that is none.
        StorageUnavailableError: the storage does not answer.
    """
    root = storage.absolute(where).rstrip("/")
    with refusing_unreadable("--input", where, root):
        if not storage.is_file(root):
            return _list_folder(where, root)
        if root.lower().endswith(LIST_EXTENSIONS):
            return _list_table(where, root)
    if not root.lower().endswith(tuple(IMAGE_EXTENSIONS)):
        raise ConfigError(f"--input {where}: received a file, expected a folder, an image, or a .csv or .parquet list")
    return _build_listing([root], stat_files([root]))


def _list_folder(where: str, root: str) -> ImageListing:
    found = find_images(root)
    if not found.images:
        seen = f"found: {'; '.join(found.notes)}" if found.notes else "it is empty"
        raise ConfigError(f"--input {where}: no image ({seen}). Expected files such as .jpg or .png, at any depth")
    known = {entry.location: (entry.size_bytes, entry.mtime_ns) for entry in found.images}
    images = _build_listing(sorted(known), known, found.notes)
    reasons = {entry.location: entry.unreadable for entry in found.images if entry.unreadable}
    places = {place: reasons[path] for place, path in enumerate(images.paths.to_pylist()) if path in reasons}
    return replace(images, unreadable=places)


def _list_table(where: str, root: str) -> ImageListing:
    """Every row of a list in its order, with its other columns."""
    source, folder = f"--input {where}", storage.parent(root)
    listed = read_list(source, root)
    paths = listed.cells("path")
    locations, known, found = locate_files(source, folder, paths)
    notes = [*listed.notes, *found]
    if not known.keys() & set(locations):  # each row says that its image is not there
        notes.append(not_found_message(folder, paths))
    others = listed.table
    if listed.table.column_names[place := listed.columns["path"]] == "path":
        others = others.remove_column(place)
    names: list[str] = []
    for name in others.column_names:
        new = name
        while new in SCHEMA.names or new in names:
            new = f"list_{new}"
        names.append(new)
    renamed = [f"{old} as {new}" for old, new in zip(others.column_names, names, strict=True) if old != new]
    if renamed:
        notes.append(f"columns of the list whose names the table has already: {', '.join(renamed)}")
    columns = others.rename_columns(names) if names else None
    return _build_listing(locations, known, notes, columns, listed.sha256 if names else "")


def _build_listing(
    paths: Sequence[str],
    known: dict[str, tuple[int, int]],
    notes: Iterable[str] = (),
    columns: pa.Table | None = None,
    columns_key: str = "",
) -> ImageListing:
    sizes, times = np.array([known.get(path, (0, 0)) for path in paths], np.int64).T
    return ImageListing(
        pa.array(paths, pa.string()), sizes, times, tuple(notes), columns=columns, columns_key=columns_key
    )
