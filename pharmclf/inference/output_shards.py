"""The parts of a table of predictions: which stand, which are missing, and how they become one file.

A part is a Parquet file next to the output. Its name holds its number and a fingerprint of the model, of what decides
its answers, and of its images; so the names alone show what is complete, and a part of another model or of
other images is never used.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pharmclf import storage
from pharmclf.core.errors import ConfigError, RunError
from pharmclf.core.hashing import fingerprint, sha256_file
from pharmclf.inference.image_listing import ImageListing
from pharmclf.inference.output_table import SCHEMA

_METADATA_KEY = b"pharmclf"  # key of the output's metadata
_PREFIX = "part-"
_STRIDE = 1 << 14  # images that are hashed at a time
_VERSION = 2  # raise it when the same model would answer otherwise than before: parts are then predicted again


class CorruptedShardError(RunError, ValueError):
    """A part that cannot be read, or is not whole. It has been deleted."""


@dataclass(frozen=True, kw_only=True)
class OutputShards:
    """The parts of one output."""

    output: str
    """Location of the table."""
    images: ImageListing
    size: int
    """Images of a part; the last may have fewer."""
    about: Mapping[str, Any]
    """What decides the answers besides the images, as JSON values."""

    @property
    def folder(self) -> str:
        """Where the parts lie."""
        return f"{self.output}.parts"

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def span(self, number: int) -> tuple[int, int]:
        """Place of the first image of a part, and the place behind its last."""
        return number * self.size, min((number + 1) * self.size, len(self.images))

    @cached_property
    def names(self) -> list[str]:
        """File name of every part."""
        return [f"{_PREFIX}{number:06d}-{self._key(*self.span(number))}.parquet" for number in range(len(self))]

    @cached_property
    def key(self) -> str:
        """Fingerprint of the whole table, whatever the size of its parts."""
        keys = [self._key(first, first + _STRIDE) for first in range(0, len(self.images), _STRIDE)]
        return fingerprint([*keys, *filter(None, [self.images.columns_key])])

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of the table: those of the answers, then those of the list.

        Raises:
            ConfigError: the output cannot hold a column.
        """
        schema = SCHEMA
        for column in self.images.columns.schema if self.images.columns is not None else ():
            schema = schema.append(column)
            if self.output.endswith(".csv"):
                try:
                    pyarrow.csv.CSVWriter(io.BytesIO(), pa.schema([column])).close()
                except pa.ArrowException as error:
                    raise ConfigError(
                        f"--output {self.output}: the column {column.name} of the list holds {column.type}, which a "
                        ".csv file cannot hold. Give --output FILE.parquet, or leave the column out of the list"
                    ) from error
        return schema

    def _key(self, first: int, last: int) -> str:
        images = self.images
        rows = [images.paths[first:last].to_pylist(), images.sizes_bytes[first:last].tolist()]
        reasons = [images.unreadable[place] for place in range(first, last) if place in images.unreadable]
        rows += [reasons] if reasons else []
        return fingerprint([_VERSION, dict(self.about), *rows, images.mtimes_ns[first:last].tolist()])

    def is_complete(self) -> bool:
        """Whether the output stands, by this model and of these images.

        Raises:
            ConfigError: another file stands there, or it cannot hold what it is asked to.
        """
        _ = self.schema  # refused before anything is predicted
        if not storage.is_file(self.output):
            return False
        about = _read_metadata(self.output)
        if about.get("key") == self.key:
            return True
        others = [name for name, value in self.about.items() if about and about.get(name) != value] or ["images"]
        what = f"differs in its {' and '.join(others)}" if about else "does not say of which model and images it is"
        raise ConfigError(
            f"--output {self.output}: is there already, and {what}. Give --overwrite, or another --output"
        )

    def existing(self) -> tuple[set[str], set[str]]:
        """Names of the files in the folder: parts of this table, and parts of others."""
        try:
            found = {entry.location.rsplit("/", 1)[-1] for entry in storage.list_files(self.folder)}
        except FileNotFoundError:
            found = set()
        found = {name for name in found if name.startswith(_PREFIX)}
        return found & set(self.names), found - set(self.names)

    def write(self, number: int, table: pa.Table) -> None:
        """Write a part, whole or not at all."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        storage.write_bytes(storage.join(self.folder, self.names[number]), sink.getvalue().to_pybytes())

    def read(self, number: int) -> pa.Table:
        """Read a part.

        Raises:
            CorruptedShardError: it is not what was written.
        """
        location = storage.join(self.folder, self.names[number])
        first, last = self.span(number)
        try:
            table = pq.read_table(io.BytesIO(storage.read_bytes(location)))
            if table.schema != SCHEMA or table["path"].combine_chunks() != self.images.paths[first:last]:
                raise ValueError("other columns or images than expected")
        except (ValueError, pa.ArrowException) as error:
            storage.delete_file(location)
            raise CorruptedShardError(
                f"{location}: {error}. It has been deleted; the same command predicts it again"
            ) from error
        return table

    def join(self, seen: Callable[[pa.Table], None]) -> None:
        """Write all parts into the output, one after the other, whole or not at all.

        Args:
            seen: is given every part.

        Raises:
            CorruptedShardError: a part is not what was written.
        """
        with tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
            path = Path(folder) / "output"
            about = {"key": self.key, **self.about}
            with _open_writer(
                path, self.output, self.schema.with_metadata({_METADATA_KEY: json.dumps(about).encode()})
            ) as writer:
                for number in range(len(self)):
                    table = self.read(number)
                    seen(table)
                    if self.images.columns is not None:
                        first, last = self.span(number)
                        beside = self.images.columns.slice(first, last - first)
                        table = pa.Table.from_arrays([*table.columns, *beside.columns], schema=self.schema)
                    writer.write_table(table)
            if self.output.endswith(".csv"):  # written first: it says of which file it speaks
                storage.write_json(_metadata_file(self.output), about | {"sha256": sha256_file(path)})
            storage.copy_file(path, self.output)


def _read_metadata(output: str) -> dict[str, Any]:
    """What an output says of itself; nothing where it is no file of this package, or has changed since."""
    try:
        with storage.local_file(output) as path:
            if not output.endswith(".csv"):
                return dict(json.loads((pq.read_schema(path).metadata or {})[_METADATA_KEY]))
            about = dict(storage.read_json(_metadata_file(output)))
            return about if about.pop("sha256") == sha256_file(path) else {}
    except (FileNotFoundError, ValueError, LookupError, TypeError, pa.ArrowException):
        return {}


def _metadata_file(output: str) -> str:
    """Where a CSV file, which has no place for it, has what it says of itself."""
    return f"{output}.json"


def _open_writer(path: Path, output: str, schema: pa.Schema) -> Any:
    if output.endswith(".csv"):
        return pyarrow.csv.CSVWriter(path, schema)
    return pq.ParquetWriter(path, schema, compression="zstd")
