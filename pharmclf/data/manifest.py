"""The manifest of a data set: a table with one row per image, which all later steps read.

Rows are sorted by path, so row numbers are stable. A bad image is quarantined: its row stays, with a reason as status.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from pharmclf import storage
from pharmclf.core.errors import ConfigError
from pharmclf.core.hashing import fingerprint
from pharmclf.data.decoded_image import LOCATOR_SIZE
from pharmclf.data.pixel_depth import MAX_VALUE
from pharmclf.monitoring.cores import usable_cores
from pharmclf.schema_version import SCHEMA_KEY, SCHEMA_VERSION, check_schema_version

OK = "ok"
EXCLUDED = "left out"
"""Beginning of the status of usable images whose class the run leaves out."""
_METADATA = b"pharmclf.manifest"
_NUMBERS = {"size_bytes": pa.int64(), "width": pa.int32(), "height": pa.int32(), "group": pa.int64()}
COLUMNS = ("path", "label", "size_bytes", "sha256", "width", "height", "phash", "group", "split", "status")
_CROP = "crop"  # left, top and side; a column of manifests with crops
_SCHEMA = pa.schema([(name, _NUMBERS.get(name, pa.string())) for name in COLUMNS])
if usable_cores() < pa.cpu_count():  # Arrow starts a thread for each core of the host, whatever a container may use
    pa.set_cpu_count(usable_cores())


@dataclass(frozen=True)
class Manifest:
    """The images of a data set, with their labels, splits and states."""

    table: pd.DataFrame
    """One row per image, sorted by path, index 0, 1, …: path (absolute, or a URI), label, size_bytes, sha256, width and
    height in pixels, phash (16 hexadecimal digits), group (the smallest row of the copies), split ("" before the
    split), status ("ok", why the image is quarantined, or why its class is left out)."""
    class_names: tuple[str, ...]
    """Labels of the usable rows, sorted; the index of a name is the class number."""
    root: str = ""
    """The folder or prefix that paths are relative to in the fingerprint."""
    notes: list[str] = field(default_factory=list)
    """Messages on the data set for the user, one line each."""
    white_level: int = MAX_VALUE
    """The value that is white in its files of 16 bits per channel; `image_decoding.decode` takes it."""
    crops: NDArray[np.float32] | None = None
    """(rows, 3) the part of each image that a run looks at, as `ImageSet.crops`; None: all of every image."""
    in_all_splits: bool = False
    """Whether runs that share a feature cache have each image in another split: those of the folds of a run."""

    @functools.cached_property
    def ok(self) -> pd.DataFrame:
        """The usable rows, with their row numbers as index."""
        return self.table[self.table["status"] == OK]

    @functools.cached_property
    def quarantined(self) -> pd.DataFrame:
        """The rows of images that cannot be used, with their row numbers as index."""
        status = self.table["status"]
        return self.table[(status != OK) & ~status.str.startswith(EXCLUDED)]

    @property
    def locator_size(self) -> int:
        """As in `PredictSpec`, for models that are trained on it: pixels, 0 without crops."""
        return 0 if self.crops is None else LOCATOR_SIZE

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the usable rows: relative path, label, sha256, group, split; independent of the folder's path.

        It includes a white level other than that of full 16 bits, and the crops, because they decide the pixels.
        """
        rows, prefix = self.ok, self.root.rstrip("/") + "/"
        paths = [path.removeprefix(prefix) for path in rows["path"]]
        groups = pd.factorize(rows["group"])[0].tolist()
        columns = [rows[name].tolist() for name in ("label", "sha256", "split")]
        levels = [] if self.white_level == MAX_VALUE else [self.white_level]
        crops = [] if self.crops is None else [self.crops[rows.index].tobytes().hex()]
        return fingerprint([paths, groups, *columns, *levels, *crops])

    def rows(self, split: str) -> NDArray[np.int64]:
        """(n,) row numbers of the usable images of a split."""
        return self.ok.index[self.ok["split"] == split].to_numpy(np.int64)

    def cached_rows(self, split: str) -> NDArray[np.int64]:
        """(n,) row numbers of the images whose features a feature cache holds for a split."""
        return self.ok.index.to_numpy(np.int64) if self.in_all_splits else self.rows(split)

    def with_splits(self, splits: ArrayLike) -> Manifest:
        """A copy with the splits of the usable rows, in their order: (usable rows,) text."""
        table = self.table.copy()
        table["split"] = ""
        table.loc[self.ok.index, "split"] = np.asarray(splits).astype(str).astype(object)
        return replace(self, table=table)

    def with_status(self, statuses: Mapping[int, str]) -> Manifest:
        """A copy with another status of some rows, by their numbers."""
        table = self.table.copy()
        table.loc[list(statuses), "status"] = list(statuses.values())
        return replace(self, table=table)

    def exclude_classes(self, labels: Iterable[str], reason: str, note: str) -> Manifest:
        """A copy without some classes: their rows stay, with the reason as status."""
        left, table = set(labels), self.table.copy()
        rows = (table["status"] == OK) & table["label"].isin(left)
        table.loc[rows, "status"], table.loc[rows, "split"] = f"{EXCLUDED}: {reason}", ""
        names = tuple(name for name in self.class_names if name not in left)
        return replace(self, table=table, class_names=names, notes=[*self.notes, note])

    def write(self, location: str) -> None:
        """Write the manifest as Parquet, atomically."""
        metadata = {
            SCHEMA_KEY: SCHEMA_VERSION,
            "version": SCHEMA_VERSION,  # for readers older than schema_version
            "root": self.root,
            "class_names": self.class_names,
            "notes": self.notes,
        }
        metadata |= {} if self.white_level == MAX_VALUE else {"white_level": self.white_level}
        metadata |= {"in_all_splits": True} if self.in_all_splits else {}
        table = pa.Table.from_pandas(self.table, schema=_SCHEMA, preserve_index=False)
        if self.crops is not None:
            table = table.append_column(_CROP, pa.FixedSizeListArray.from_arrays(self.crops.ravel(), 3))
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({_METADATA: json.dumps(metadata).encode()}), buffer)
        storage.write_bytes(location, buffer.getvalue())

    @staticmethod
    def read(location: str) -> Manifest:
        """Read a manifest that `write` wrote.

        Raises:
            ConfigError: missing, or not a manifest of this version.
            StorageUnavailableError: the storage does not answer.
        """
        remedy = "Make it again with pharmclf prepare"
        try:
            table = pq.read_table(io.BytesIO(storage.read_bytes(location)))
            metadata = json.loads((table.schema.metadata or {})[_METADATA])
        except storage.StorageUnavailableError:
            raise
        except (OSError, KeyError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise ConfigError(f"manifest {location}: expected a manifest: {error!r}. {remedy}") from error
        check_schema_version(metadata, f"manifest {location}")
        frame = table.select(_SCHEMA.names).replace_schema_metadata(None).to_pandas()
        names, notes = tuple(metadata["class_names"]), list(metadata["notes"])
        crops = None
        if _CROP in table.column_names:
            crops = table[_CROP].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, 3)
        white_level = int(metadata.get("white_level", MAX_VALUE))
        in_all_splits = bool(metadata.get("in_all_splits", False))
        return Manifest(frame, names, metadata["root"], notes, white_level, crops, in_all_splits)

    def write_quarantine(self, location: str) -> None:
        """Write the unused rows as CSV: path, label, status."""
        unused = self.table[self.table["status"] != OK]
        text = unused[["path", "label", "status"]].to_csv(index=False, lineterminator="\n")
        storage.write_bytes(location, text.encode())
