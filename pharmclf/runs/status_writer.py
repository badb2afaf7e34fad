"""Writes the status of a run into its folder, in the background."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Mapping

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.background import BackgroundTask
from pharmclf.core.events import Event
from pharmclf.core.timeouts import CLOSE_WRITER_S, OPTIONAL_STORAGE_S
from pharmclf.runs.status import STATUS_FILE, Status, StatusBuilder, parse_status

_WRITE_INTERVAL_S = 5.0


class StatusWriter:
    """Writes while this process holds the lease of the folder; events neither wait for the storage nor fail."""

    def __init__(self, folder: str, config: RunConfig, sizes: Mapping[str, int], lost: Callable[[], object]) -> None:
        """Start, given the images of each split; nothing is written once the lease of the folder is lost."""
        self._location, self._lost = storage.join(folder, STATUS_FILE), lost
        self._builder = StatusBuilder(config, sizes, self._read_previous())
        self._lock = threading.Lock()
        self._changed = True
        self._task = BackgroundTask(
            "status",
            self._write,
            every_s=_WRITE_INTERVAL_S,
            at_start=True,
            attempts_at_close=1,
            failure=f"{self._location} cannot be written",
        )

    def on_event(self, event: Event, /) -> None:
        """As `Callback.on_event`."""
        with self._lock:
            urgent = self._builder.handle_event(event)
            self._changed = True
        if urgent:
            self._task.notify()

    def now(self) -> Status:
        """A copy of the current status."""
        with self._lock:
            return dataclasses.replace(self._builder.status)

    def close(self) -> None:
        """Write the last status; wait at most `CLOSE_WRITER_S` for the storage."""
        self._task.close(CLOSE_WRITER_S)

    def _read_previous(self) -> Status | None:
        with contextlib.suppress(OSError, ValueError), storage.timeout(OPTIONAL_STORAGE_S):
            return parse_status(storage.read_json(self._location))
        return None

    def _write(self) -> None:
        with self._lock:
            if not self._changed or self._lost():
                return
            self._changed, content = False, self._builder.status.to_dict()
        try:
            with storage.timeout(OPTIONAL_STORAGE_S):
                storage.write_json(self._location, content)
        except OSError:
            with self._lock:
                self._changed = True
            raise
