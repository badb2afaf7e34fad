"""Writes and prunes the checkpoints of a run; uploads to remote storage run in the background, from a local spool."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pharmclf import storage
from pharmclf.core.hashing import fingerprint
from pharmclf.training.checkpoint import (
    METADATA_FILE,
    Checkpoint,
    check_fingerprints,
    delete_old_checkpoints,
    list_checkpoints,
    write_checkpoint,
)
from pharmclf.training.phases import Position

_ATTEMPT_TIMEOUT_S = 20.0  # timeout of one upload; it is repeated while training continues
_PAUSE_S = 5.0


class _CheckpointInfo(NamedTuple):
    position: Position
    best: frozenset[str]
    """Names of the best checkpoint of each phase, which it refers to."""


def staging_dir(folder: str) -> str:
    """The local folder (spool) of checkpoints that wait for their upload to remote storage."""
    root = os.environ.get("PHARMCLF_STORAGE_SPOOL") or f"{tempfile.gettempdir()}/pharmclf-spool-{os.getuid()}"
    return storage.join(root, fingerprint(folder)[:16])


class CheckpointManager:
    """Writes checkpoints, uploads them in a thread, and deletes old ones. (chief only)"""

    def __init__(self, folder: str, fingerprints: dict[str, Any], keep: int, say: Callable[[str], None]) -> None:
        """Upload what an earlier process has left in the spool.

        Args:
            fingerprints: of the run; the spool of another run is refused.
            keep: number of newest checkpoints that are kept, in addition to each phase's best.

        Raises:
            StorageUnavailableError: the spool could not be uploaded.
            ConfigError: it belongs to another run.
        """
        self._folder, self._fingerprints, self._keep, self._say = folder, fingerprints, keep, say
        self._known = {checkpoint.name: _checkpoint_info(checkpoint) for checkpoint in list_checkpoints(folder)}
        self._last: Position | None = None
        self._remote = storage.is_remote(folder)
        self._spool = staging_dir(folder)
        self._waiting: list[tuple[Checkpoint, _CheckpointInfo]] = []  # in the spool, oldest first
        self._changed = threading.Condition()
        self._closing_at = 0.0
        self._thread: threading.Thread | None = None
        if self._remote:
            self._upload_leftovers()
            self._thread = threading.Thread(target=self._upload_all, name="checkpoint-upload", daemon=True)
            self._thread.start()

    def resume_from(self, position: Position) -> None:
        """Do not write the checkpoint at this position again: it exists and is intact."""
        self._last = position

    def save(self, position: Position, tensors: Mapping[str, Mapping[str, np.ndarray]], state: dict[str, Any]) -> str:
        """Write a checkpoint, to the spool where the storage is remote.

        Args:
            tensors: for each file its arrays by name.
            state: `TrainState.state_dict`.

        Returns:
            The checkpoint's name.
        """
        if position == self._last:  # nothing has been trained since, and it may be uploading
            return position.label
        self._last = position
        place = self._spool if self._remote else self._folder
        written = write_checkpoint(place, position, tensors, state, self._fingerprints)
        if not self._remote:
            self._prune(written.name, _checkpoint_info(written))
        with self._changed:
            self._waiting += [(written, _checkpoint_info(written))] if self._remote else []
            self._changed.notify_all()
        return written.name

    def flush(self) -> None:
        """Wait until all checkpoints are in the storage.

        Raises:
            StorageUnavailableError: they could not be uploaded; the message names them and where they are.
        """
        if self.close():
            raise storage.StorageUnavailableError(self._find_leftovers())

    def close(self) -> list[str]:
        """End the uploads -> names of the checkpoints that stay in the spool; a note lists them."""
        if self._thread is None:
            return []
        with self._changed:
            first = self._closing_at == 0.0
            self._closing_at = self._closing_at or time.monotonic()
            self._changed.notify_all()
        self._thread.join()
        left = [checkpoint.name for checkpoint, _ in self._waiting]
        if left and first:
            self._say(self._find_leftovers())
        return left

    def _find_leftovers(self) -> str:
        names = ", ".join(checkpoint.name for checkpoint, _ in self._waiting)
        return (
            f"not uploaded to {self._folder}: {names}. They are kept in {self._spool}; "
            "the same command on this machine uploads them and resumes from there"
        )

    def _upload_leftovers(self) -> None:
        for checkpoint in list_checkpoints(self._spool):
            if checkpoint.position > max((k.position for k in self._known.values()), default=Position(0, 0, 0)):
                check_fingerprints(checkpoint.fingerprints, self._fingerprints, f"checkpoint {checkpoint.location}")
                self._upload(checkpoint, _checkpoint_info(checkpoint))
                self._say(f"uploaded {checkpoint.name} from {self._spool}")
        storage.delete_folder(self._spool)

    def _upload_all(self) -> None:
        warned = False
        while True:
            with self._changed:
                while not self._waiting and not self._closing_at:
                    self._changed.wait()
                if not self._waiting:
                    return
                self._skip_superseded()
                checkpoint, known = self._waiting[0]
            try:
                with storage.timeout(min(_ATTEMPT_TIMEOUT_S, storage.timeout_s())):
                    self._upload(checkpoint, known)
                with self._changed:
                    self._waiting.remove((checkpoint, known))
                storage.delete_folder(checkpoint.location)
                warned = False
            except OSError as error:
                if not warned:
                    self._say(f"checkpoint {checkpoint.name} waits in {self._spool}, the upload is repeated: {error}")
                warned = True
                with self._changed:
                    if (
                        self._closing_at
                        and time.monotonic() - self._closing_at > storage.timeout_s() - _ATTEMPT_TIMEOUT_S
                    ):
                        return
                    self._changed.wait(_PAUSE_S)

    def _skip_superseded(self) -> None:
        """Drop waiting checkpoints except the newest and the best."""
        best = self._waiting[-1][1].best
        for checkpoint, known in self._waiting[:-1]:
            if checkpoint.name not in best:
                self._waiting.remove((checkpoint, known))
                storage.delete_folder(checkpoint.location)

    def _upload(self, checkpoint: Checkpoint, known: _CheckpointInfo) -> None:
        """Upload the files of a checkpoint, its record last."""
        target = storage.join(self._folder, checkpoint.name)
        storage.delete_file(storage.join(target, METADATA_FILE))  # of a damaged one that is written again
        storage.upload_folder(Path(checkpoint.location), target, last=METADATA_FILE)
        with contextlib.suppress(OSError):  # old checkpoints that stay are no failure
            self._prune(checkpoint.name, known)

    def _prune(self, newest: str, known: _CheckpointInfo) -> None:
        """Delete old checkpoints, and those after the newest position, which belong to a damaged history."""
        self._known = {n: k for n, k in self._known.items() if k.position < known.position} | {newest: known}
        newest_names = sorted(self._known, key=lambda name: self._known[name].position)[-self._keep :]
        kept = {*newest_names, *(best for name in newest_names for best in self._known[name].best)}
        delete_old_checkpoints(self._folder, kept)
        self._known = {name: k for name, k in self._known.items() if name in kept}


def _checkpoint_info(checkpoint: Checkpoint) -> _CheckpointInfo:
    return _CheckpointInfo(checkpoint.position, frozenset(checkpoint.state.get("best", {}).values()))
