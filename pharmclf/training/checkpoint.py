"""Checkpoints: complete or absent, verified when read, in formats that cannot run code.

Order of writing: tensors, `checkpoint.json` with the sha256 of each, then older checkpoints are deleted. A folder
without `checkpoint.json` is not a checkpoint. The newest one is determined by the position inside, never by a name or
a date.
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
"""Written last."""
_log = logging.getLogger(__name__)


class CorruptedCheckpointError(RunError, ValueError):
    """A file of a checkpoint is missing or damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """The record of a checkpoint; its tensors are read on demand."""

    location: str
    name: str
    position: Position
    state: dict[str, Any]
    """`TrainState.state_dict`."""
    fingerprints: dict[str, Any]
    """Of everything that the run depends on, see `check_fingerprints`."""
    files: dict[str, str]
    """sha256 of each file."""

    def tensors(self, file: str) -> dict[str, np.ndarray]:
        """Read one file of tensors, `weights` or `optimizer`.

        Raises:
            CorruptedCheckpointError: the file is missing, or its sha256 differs.
        """
        name = f"{file}.safetensors"
        try:
            content = storage.read_bytes(storage.join(self.location, name))
        except (PermissionError, storage.StorageUnavailableError):
            raise
        except OSError as error:
            raise CorruptedCheckpointError(f"checkpoint {self.location}: {name} cannot be read: {error}") from error
        expected = self.files.get(name, "none")
        received = sha256_bytes(content)
        if received != expected:
            raise CorruptedCheckpointError(
                f"checkpoint {self.location}: {name} has sha256 {received[:12]}…, expected {expected[:12]}…"
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
        tensors: for each file (`weights`, `optimizer`) its arrays by name.
        state: `TrainState.state_dict`.
    """
    location = storage.join(folder, position.label)
    storage.delete_folder(location)  # left by a writer that was killed
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
    """Read the record of a checkpoint.

    Raises:
        CorruptedCheckpointError: the record is missing or cannot be read.
        ConfigError: it has another schema version.
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
    """All checkpoints of a run with a readable record, oldest position first."""
    checkpoints = []
    for name in storage.list_folders(folder):
        location = storage.join(folder, name)
        if storage.is_file(storage.join(location, METADATA_FILE)):
            try:
                checkpoints.append(read_checkpoint(location))
            except CorruptedCheckpointError as error:
                _log.warning("%s; it is ignored", error)
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.position)


def newest_checkpoint(folder: str) -> tuple[Checkpoint, dict[str, dict[str, np.ndarray]]] | None:
    """The newest intact checkpoint, with its tensors; the log names damaged ones."""
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            return checkpoint, {file: checkpoint.tensors(file) for file in ("weights", "optimizer")}
        except CorruptedCheckpointError as error:
            _log.warning("%s; the one before it is used", error)
    return None


def delete_old_checkpoints(folder: str, keep: Iterable[str]) -> None:
    """Delete all other checkpoints; each record first, so that a partly deleted one does not count. (chief only)"""
    kept = set(keep)
    for name in storage.list_folders(folder):
        if name not in kept:
            location = storage.join(folder, name)
            storage.delete_file(storage.join(location, METADATA_FILE))
            storage.delete_folder(location)


def check_fingerprints(received: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Refuse what belongs to another run.

    Raises:
        ConfigError: names each field that differs, with both values.
    """
    names = sorted({*received, *expected})
    differing = [name for name in names if received.get(name) != expected.get(name)]
    if differing:
        rows = "; ".join(f"{name}: {received.get(name)!r} there, {expected.get(name)!r} now" for name in differing)
        raise ConfigError(
            f"{where} belongs to another run: {rows}. Give a new --name, the settings "
            "of that run, or --overwrite to delete it and start again"
        )
