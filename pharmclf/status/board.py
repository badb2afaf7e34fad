"""Writes a run's status into its folder, behind the run."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.status.standing import STATUS_FILE, Standing, Status

_EVERY_S = 5.0
_PATIENCE_S = 5.0  # with a storage that does not answer; the next status follows anyway
_LAST_WORDS_S = 5.0  # for the last status at the end of a run
_log = logging.getLogger(__name__)


class StatusBoard:
    """Writes while this process holds the lease of the folder; no event waits for the storage, and none fails by it."""

    def __init__(self, folder: str, config: RunConfig, sizes: Mapping[str, int], lost: Callable[[], object]) -> None:
        """Begin to write.

        Args:
            folder: of the run.
            config: the run.
            sizes: images of each split.
            lost: whether the lease of the folder has been lost; then nothing is written any more.
        """
        self._location, self._lost = storage.join(folder, STATUS_FILE), lost
        self._standing = Standing(config, sizes, self._left_before())
        self._lock = threading.Lock()
        self._soon = threading.Event()
        self._changed, self._ended, self._warned = True, False, False
        self._thread = threading.Thread(target=self._write_all, name="status", daemon=True)
        self._soon.set()
        self._thread.start()

    def event(self, kind: str, **values: Any) -> None:
        """Take an event of the run, as `Observer.event`; also test, and end (state, reason)."""
        with self._lock:
            urgent = self._standing.take(kind, values)
            self._changed = True
        if urgent:
            self._soon.set()

    def now(self) -> Status:
        """A copy of the present status."""
        with self._lock:
            return dataclasses.replace(self._standing.status)

    def close(self) -> None:
        """Write the last status; a storage that does not answer is waited for some seconds."""
        self._ended = True
        self._soon.set()
        self._thread.join(_LAST_WORDS_S)

    def _left_before(self) -> Any:
        with contextlib.suppress(OSError, ValueError), storage.patience(_PATIENCE_S):
            return storage.read_json(self._location)
        return None

    def _write_all(self) -> None:
        while True:
            self._soon.wait(_EVERY_S)
            self._soon.clear()
            last = self._ended  # read first: what came before the end is written then
            self._write()
            if last:
                return

    def _write(self) -> None:
        with self._lock:
            if not self._changed or self._lost():
                return
            self._changed, content = False, self._standing.status.to_dict()
        try:
            with storage.patience(_PATIENCE_S):
                storage.write_json(self._location, content)
            self._warned = False
        except OSError as error:
            with self._lock:
                self._changed = True
            if not self._warned:
                _log.warning("%s cannot be written, and the run goes on without: %s", self._location, error)
            self._warned = True
