"""One writer for a folder: a lease in storage that its holder renews, and that expires when the holder is gone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from pharmclf import storage
from pharmclf.core.background import BackgroundTask
from pharmclf.core.errors import RunError
from pharmclf.core.timeouts import FINAL_STORAGE_S

EXPIRES_S = 60.0
"""A lease that was not renewed for so long is no more; clocks of storage and machines may differ by less than this."""
_RENEW_S = 15.0
LEASE_FILE = "lease.json"


class LeaseHeldError(RunError):
    """Another process that lives holds the lease."""


class LeaseLostError(RunError):
    """Another process has taken over the folder, since the lease could not be renewed."""


class Lease:
    """Held from `acquire` to `release` or the end of its `with` block, renewed by a thread."""

    def __init__(self, location: str, version: str, holder: dict[str, Any]) -> None:
        self._location, self._version, self._holder = location, version, holder
        self.is_lost = ""
        """Who took it over while this process could not renew it; "" while it is held."""
        # a storage that is away for a while costs nobody the lease
        self._task = BackgroundTask("lease", self._renew, every_s=_RENEW_S, failure=f"{location} cannot be renewed")

    @staticmethod
    def acquire(folder: str) -> Lease:
        """Take the lease of a folder.

        Raises:
            LeaseHeldError: another process holds it; the message names it.
        """
        location = storage.join(folder, LEASE_FILE)
        holder = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
        }
        found = storage.read_versioned(location)
        if found is not None and (reason := active_holder(found)):
            raise LeaseHeldError(f"{folder} is being written by {reason}")
        version = storage.compare_and_swap(location, _encode(holder), found.version if found else None)
        if version is None:
            raise LeaseHeldError(f"{folder} has just been taken by another process")
        return Lease(location, version, holder)

    def check(self) -> None:
        """Raise LeaseLostError if another process holds the lease by now."""
        if self.is_lost:
            folder = self._location.removesuffix(f"/{LEASE_FILE}")
            raise LeaseLostError(
                f"{folder} has been taken over by {self.is_lost}, since the lease could not be renewed"
            )

    def release(self) -> None:
        """Give the lease back: delete its file, if it is still ours; a storage that is away lets it expire."""
        self._task.close()
        with contextlib.suppress(OSError), storage.timeout(FINAL_STORAGE_S):
            found = None if self.is_lost else storage.read_versioned(self._location)
            if found and self._is_ours(found):
                storage.delete_file(self._location)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _renew(self) -> None:
        if self.is_lost:
            return
        # the content must change, or an object's version would not
        with storage.timeout(_RENEW_S):
            version = storage.compare_and_swap(self._location, _encode(self._holder), self._version)
        if version is None:
            found = storage.read_versioned(self._location)
            if found and self._is_ours(found):  # written by a renewal that ended in an error
                version = found.version
            else:
                self.is_lost = _name(found) if found else "somebody who has ended already"
        self._version = version or self._version

    def _is_ours(self, found: storage.Versioned) -> bool:
        return self._holder["id"].encode() in found.content


def _encode(holder: dict[str, Any]) -> bytes:
    return json.dumps(holder | {"renewed": time.time()}).encode()


def _name(found: storage.Versioned) -> str:
    try:
        holder = json.loads(found.content)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "an unknown process"


def active_holder(found: storage.Versioned) -> str:
    """Who holds a lease, in words; "" when nobody does any more."""
    age_s = time.time() - found.changed_s
    if age_s > EXPIRES_S:
        return ""
    try:
        holder = json.loads(found.content)
        if holder["machine"] == _machine() and not _runs_here(holder["pid"], holder["started"]):
            return ""
    except (ValueError, KeyError, TypeError):
        pass
    return f"{_name(found)}, seen alive {max(age_s, 0):.0f} s ago; after {EXPIRES_S:.0f} s it would count as dead"


def _machine() -> str:
    """What tells this machine, and this container on it, from others of the same name."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux has these
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _runs_here(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
