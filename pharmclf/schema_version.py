"""The version of the files on disk: every writer names it, every reader refuses a later one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pharmclf import storage
from pharmclf.core.errors import ConfigError

SCHEMA_VERSION = 1
SCHEMA_KEY = "schema_version"


def check_schema_version(record: Any, location: str) -> None:
    """Refuse a record of another version; one that names none is of version 1.

    Args:
        record: the content of a file; what is not a mapping has no version, and is left to its reader.
        location: of the file.

    Raises:
        ConfigError: another version.
    """
    version = record.get(SCHEMA_KEY, 1) if isinstance(record, Mapping) else 1
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{location}: received {SCHEMA_KEY} {version!r}, expected {SCHEMA_VERSION}. "
            "Read it with the version of pharmclf that wrote it, or with a later one"
        )


def load_record(location: str) -> Any:
    """The value of a JSON file whose version this code reads.

    Raises:
        ConfigError: another version.
        OSError, ValueError: not there, or not JSON.
    """
    record = storage.read_json(location)
    check_schema_version(record, location)
    return record
