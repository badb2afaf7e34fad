"""Checkpoints: written whole or not at all, verified at reading, in formats that cannot run code.

The order of writing: tensors, then `checkpoint.json` with the sha256 of each, then older checkpoints go. A folder
without `checkpoint.json` is not a checkpoint. Which one is newest is read from the position inside, never from a name
or a date.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from pharmclf import storage
from pharmclf.core.errors import ConfigError, RunError
from pharmclf.core.hashing import sha256_bytes
from pharmclf.schema_version import SCHEMA_KEY, SCHEMA_VERSION, load_record
from pharmclf.training.phases import Position

METADATA_FILE = "checkpoint.json"
"""Written last; a folder without it is no checkpoint."""
_log = logging.getLogger(__name__)


class CorruptedCheckpointError(RunError, ValueError):
    """A file of a checkpoint is missing or not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint from its record, before its tensors are read."""

    location: str
    name: str
    position: Position
    state: dict[str, Any]
    """History, monitor and all else that the loop needs to go on."""
    fingerprints: dict[str, Any]
    """What the run depends on; see `check_fingerprints`."""
    files: dict[str, str]
    """sha256 of each file."""

    def tensors(self, file: str) -> dict[str, np.ndarray]:
        """Read one file of tensors, `weights` or `optimizer`.

        Raises:
            CorruptedCheckpointError: the file is missing or its sha256 is another.
        """
        name = f"{file}.safetensors"
        try:
            content = storage.read_bytes(storage.join(self.location, name))
        except (PermissionError, storage.StorageUnavailableError):
            raise
        except OSError as error:
            raise CorruptedCheckpointError(f"checkpoint {self.location}: {name} cannot be read: {error}") from error
        expected = self.files.get(name, "none")
        found = sha256_bytes(content)
        if found != expected:
            raise CorruptedCheckpointError(
                f"checkpoint {self.location}: {name} has sha256 {found[:12]}…, expected {expected[:12]}…"
            )
        try:
            return dict(safetensors.load(content))
        except SafetensorError as error:
            raise CorruptedCheckpointError(f"checkpoint {self.location}: {name}: {error}") from error


def write_checkpoint(
    folder: str,
    position: Position,
    tensors: Mapping[str, Mapping[str, np.ndarray]],
    state: dict[str, Any],
    fingerprints: dict[str, Any],
) -> Checkpoint:
    """Write a checkpoint. (chief only)

    Args:
        folder: the run's `checkpoints/`.
        tensors: for each file (`weights`, `optimizer`) its arrays by name.
        state: plain values for JSON.
    """
    location = storage.join(folder, position.label)
    storage.delete_folder(location)  # the remains of a writer that was killed here
    files = {}
    for file, arrays in tensors.items():
        content = safetensors.save({name: np.asarray(array, order="C") for name, array in arrays.items()})
        storage.write_bytes(storage.join(location, f"{file}.safetensors"), content)
        files[f"{file}.safetensors"] = sha256_bytes(content)
    record = {
        SCHEMA_KEY: SCHEMA_VERSION,
        "position": position.to_dict(),
        "fingerprints": fingerprints,
        "files": files,
        "state": state,
    }
    storage.write_json(storage.join(location, METADATA_FILE), record)
    return Checkpoint(location, position.label, position, state, fingerprints, files)


def read_checkpoint(location: str) -> Checkpoint:
    """Read a checkpoint's record.

    Raises:
        CorruptedCheckpointError: no record, or one that cannot be read.
        ConfigError: of another version.
    """
    try:
        record = load_record(storage.join(location, METADATA_FILE))
        name = location.rstrip("/").rsplit("/", 1)[-1]
        position = Position(**record["position"])
        return Checkpoint(location, name, position, record["state"], record["fingerprints"], record["files"])
    except (PermissionError, storage.StorageUnavailableError):
        raise
    except (OSError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CorruptedCheckpointError(f"checkpoint {location}: {METADATA_FILE} cannot be read: {error!r}") from error
    except ConfigError:
        raise
    except ValueError as error:
        raise CorruptedCheckpointError(f"checkpoint {location}: {METADATA_FILE} is not JSON: {error}") from error


def list_checkpoints(folder: str) -> list[Checkpoint]:
    """All whole checkpoints of a run, oldest position first."""
    found = []
    for name in storage.list_folders(folder):
        location = storage.join(folder, name)
        if storage.is_file(storage.join(location, METADATA_FILE)):
            try:
                found.append(read_checkpoint(location))
            except CorruptedCheckpointError as error:
                _log.warning("%s; it is left out", error)
    return sorted(found, key=lambda checkpoint: checkpoint.position)


def newest_checkpoint(folder: str) -> tuple[Checkpoint, dict[str, dict[str, np.ndarray]]] | None:
    """The newest checkpoint whose every file is as it was written, with its tensors; the log names damaged ones."""
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            return checkpoint, {file: checkpoint.tensors(file) for file in ("weights", "optimizer")}
        except CorruptedCheckpointError as error:
            _log.warning("%s; the one before it is taken", error)
    return None


def delete_old_checkpoints(folder: str, keep: Iterable[str]) -> None:
    """Delete all checkpoints but the named ones; the record goes first, so none is ever half there. (chief only)"""
    kept = set(keep)
    for name in storage.list_folders(folder):
        if name not in kept:
            location = storage.join(folder, name)
            storage.delete_file(storage.join(location, METADATA_FILE))
            storage.delete_folder(location)


def check_fingerprints(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Refuse to go on with what belongs to another run.

    Raises:
        ConfigError: names each field that differs, with both values.
    """
    names = sorted({*found, *expected})
    differing = [name for name in names if found.get(name) != expected.get(name)]
    if differing:
        rows = "; ".join(f"{name}: {found.get(name)!r} there, {expected.get(name)!r} now" for name in differing)
        raise ConfigError(
            f"{where} belongs to another run: {rows}. Give a new --name, the settings "
            "of that run, or --overwrite to delete it and begin again"
        )
