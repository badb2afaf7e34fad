"""The parts of a table of predictions: which stand, which are missing, and how they become one file.

A part is a Parquet file beside the output. Its name holds its number and a fingerprint of the model, of what decides
its answers, and of its images; so the names alone tell what is done, and nothing of another model or other images is
ever taken for it.
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
from pharmclf.config import ConfigError
from pharmclf.fingerprint import fingerprint
from pharmclf.prediction.answers import SCHEMA
from pharmclf.prediction.images import Images

OUTPUTS = (".parquet", ".csv")
_ABOUT = b"pharmclf"  # key of the output's metadata
_PREFIX = "part-"
_STRIDE = 1 << 14  # images that are hashed at a time
_VERSION = 1  # raise it when the same model would answer otherwise than before: parts are then made anew


class DamagedPart(ValueError):
    """A part that cannot be read, or is not whole. It has been deleted."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of one output."""

    output: str
    """Location of the table."""
    images: Images
    size: int
    """Images of a part; the last may have fewer."""
    about: Mapping[str, Any]
    """What decides the answers beside the images: of JSON's types."""

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
        return fingerprint([self._key(first, first + _STRIDE) for first in range(0, len(self.images), _STRIDE)])

    def _key(self, first: int, last: int) -> str:
        images = self.images
        rows = [images.paths[first:last].to_pylist(), images.sizes_bytes[first:last].tolist()]
        reasons = [images.unreadable[place] for place in range(first, last) if place in images.unreadable]
        rows += [reasons] if reasons else []
        return fingerprint([_VERSION, dict(self.about), *rows, images.mtimes_ns[first:last].tolist()])

    def is_complete(self) -> bool:
        """Whether the output stands, by this model and of these images.

        Raises:
            ConfigError: another file stands there.
        """
        if not storage.is_file(self.output):
            return False
        about = _about(self.output)
        if about.get("key") == self.key:
            return True
        others = [name for name, value in self.about.items() if about and about.get(name) != value] or ["images"]
        what = f"of another {' and '.join(others)}" if about else "and does not tell of which model and images it is"
        raise ConfigError(f"--output {self.output}: is there already, {what}. Give --overwrite, or another --output")

    def standing(self) -> tuple[set[str], set[str]]:
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
            DamagedPart: it is not what was written.
        """
        location = storage.join(self.folder, self.names[number])
        first, last = self.span(number)
        try:
            table = pq.read_table(io.BytesIO(storage.read_bytes(location)))
            if table.schema != SCHEMA or table["path"].combine_chunks() != self.images.paths[first:last]:
                raise ValueError("other columns or images than expected")
        except (ValueError, pa.ArrowException) as error:
            storage.delete_file(location)
            raise DamagedPart(f"{location}: {error}. It has been deleted; the same command makes it anew") from error
        return table

    def join(self, seen: Callable[[pa.Table], None]) -> None:
        """Write all parts into the output, one after the other, whole or not at all.

        Args:
            seen: is given every part.

        Raises:
            DamagedPart: a part is not what was written.
        """
        with tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
            path = Path(folder) / "output"
            about = {_ABOUT: json.dumps({"key": self.key, **self.about}).encode()}
            with _writer(path, self.output, SCHEMA.with_metadata(about)) as writer:
                for number in range(len(self)):
                    table = self.read(number)
                    writer.write_table(table)
                    seen(table)
            storage.copy_file(path, self.output)


def _about(output: str) -> dict[str, Any]:
    """What an output tells of itself; nothing where it is no Parquet file of this package."""
    try:
        with storage.local_file(output) as path:
            return json.loads((pq.read_schema(path).metadata or {})[_ABOUT])
    except (ValueError, LookupError, pa.ArrowException):
        return {}


def _writer(path: Path, output: str, schema: pa.Schema) -> Any:
    if output.endswith(".csv"):
        return pyarrow.csv.CSVWriter(path, schema)
    return pq.ParquetWriter(path, schema, compression="zstd")
