"""Lists of images: CSV or Parquet tables of paths, labels, groups and splits."""

from __future__ import annotations

import io
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.data.splits import SPLITS

LISTS = (".csv", ".parquet")
"""How the name of a list ends."""


def list_table(data: str, root: str) -> tuple[str, list[tuple[str, str, str, int, int, str, str]], list[str]]:
    """Read a CSV or Parquet list.

    Returns:
        The list's folder; the fields of an `Item` for each row; notes.
    """
    if not root.lower().endswith(LISTS):
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
    locations = [resolve(folder, row[0]) for row in unique]
    known = describe(locations)
    items = [
        (location, location.removeprefix(folder + "/"), label, *known.get(location, (0, 0)), group, split)
        for location, (_, label, group, split) in zip(locations, unique, strict=True)
    ]
    if not items:
        raise ConfigError(f"--data {data}: the list has no row. Expected one row per image: path, label")
    items.sort(key=lambda item: item[1:3])  # by path, then by label
    return folder, items, notes


def resolve(folder: str, path: str) -> str:
    """A path of a list as a location: as it is, or relative to the list's folder."""
    if storage.is_remote(path) or (storage.is_remote(folder) and not path.startswith("/")):
        return path if storage.is_remote(path) else storage.join(folder, path)
    return os.path.normpath(os.path.join(folder, path))


def describe(locations: list[str]) -> dict[str, tuple[int, int]]:
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
