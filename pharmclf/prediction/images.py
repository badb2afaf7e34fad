"""The images to predict, listed without class folders. Pure."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.data.image_files import find_images
from pharmclf.data.images import IMAGE_EXTENSIONS
from pharmclf.data.list_tables import LISTS, describe, resolve


@dataclass(frozen=True, eq=False)
class Images:
    """What is to be predicted, sorted by path, each image once."""

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

    def __len__(self) -> int:
        return len(self.paths)


def list_images(where: str) -> Images:
    """List images without reading them.

    Args:
        where: a folder or prefix, of which all images at any depth are taken; an image; or a .csv or .parquet list with
            a column `path`: locations, or paths relative to the list. Local or s3://.

    Raises:
        ConfigError: nothing there, no image, or a list that is none.
        StorageUnavailable: the storage does not answer.
    """
    root = storage.absolute(where).rstrip("/")
    try:
        if not storage.is_file(root):
            return _list_folder(where, root)
        if root.lower().endswith(LISTS):
            return _list_table(where, root)
    except storage.StorageUnavailable:
        raise
    except OSError as error:
        reason = " ".join(str(error).split()).removeprefix(f"{root}: ")
        reason = "nothing there" if reason == root else reason
        raise ConfigError(f"--input {where}: {reason}. Give a readable folder, s3:// prefix or list") from error
    if not root.lower().endswith(tuple(IMAGE_EXTENSIONS)):
        raise ConfigError(f"--input {where}: received a file, expected a folder, an image, or a .csv or .parquet list")
    return _images([root], describe([root]))


def _list_folder(where: str, root: str) -> Images:
    found = find_images(root)
    if not found.images:
        seen = f"found: {'; '.join(found.notes)}" if found.notes else "it is empty"
        raise ConfigError(f"--input {where}: no image ({seen}). Expected files such as .jpg or .png, at any depth")
    known = {entry.location: (entry.size_bytes, entry.mtime_ns) for entry in found.images}
    images = _images(known, known, found.notes)
    reasons = {entry.location: entry.unreadable for entry in found.images if entry.unreadable}
    places = {place: reasons[path] for place, path in enumerate(images.paths.to_pylist()) if path in reasons}
    return replace(images, unreadable=places)


def _list_table(where: str, root: str) -> Images:
    content = io.BytesIO(storage.read_bytes(root))
    try:
        if root.lower().endswith(".csv"):
            frame = pd.read_csv(content, dtype=str, keep_default_na=False)
        else:
            frame = pq.read_table(content).to_pandas()
    except (ValueError, pa.ArrowException) as error:
        raise ConfigError(f"--input {where}: not a list: {str(error).splitlines()[0]}") from error
    if "path" not in frame:
        names = ", ".join(map(str, frame.columns))
        raise ConfigError(f"--input {where}: no column path; found: {names}. Name the column of the images path")
    cells = ["" if pd.isna(cell) else str(cell).strip() for cell in frame["path"]]
    if "" in cells:
        raise ConfigError(f"--input {where}: row {cells.index('') + 1} has no path. Fill it in, or remove the row")
    if not cells:
        raise ConfigError(f"--input {where}: the list has no row. Expected one row per image: path")
    folder = root.rpartition("/")[0]
    locations = {resolve(folder, cell) for cell in cells}
    twice = len(cells) - len(locations)
    notes = [f"rows that stand in the list twice, used once: {twice}"] if twice else []
    try:
        known = describe(sorted(locations))
    except FileNotFoundError:  # nothing there; each image will say so
        known = {}
    return _images(locations, known, notes)


def _images(locations: Iterable[str], known: dict[str, tuple[int, int]], notes: Iterable[str] = ()) -> Images:
    paths = sorted(locations)
    sizes, times = np.array([known.get(path, (0, 0)) for path in paths], np.int64).T
    return Images(pa.array(paths, pa.string()), sizes, times, tuple(notes))
