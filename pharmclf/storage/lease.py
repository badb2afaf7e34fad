"""One writer for a folder: a lease in storage that its holder renews, and that expires after the holder has ended."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from pathlib import Path
from typing import TypedDict

import psutil

from pharmclf import storage
from pharmclf.core.background import BackgroundTask
from pharmclf.core.errors import RunError
from pharmclf.core.timeouts import FINAL_STORAGE_S

EXPIRES_S = 60.0
"""A lease expires without renewal in this time; clocks of storage and machines may differ by less."""
_RENEW_S = 15.0
LEASE_FILE = "lease.json"


class Holder(TypedDict):
    """The process that holds a lease, in its file."""

    id: str
    host: str
    machine: str
    pid: int
    started: float
    """Seconds since 1970."""


class LeaseHeldError(RunError):
    """A running process holds the lease."""


class LeaseLostError(RunError):
    """Another process has taken over the folder after a renewal failed."""


class Lease:
    """Held from `acquire` to `release` or the end of its `with` block, renewed by a thread."""

    def __init__(self, location: str, version: str, holder: Holder) -> None:
        self._location, self._version, self._holder = location, version, holder
        self.is_lost = ""
        """The process that took it over while this one could not renew it; "" while it is held."""
        # an outage of the storage does not end the lease
        self._task = BackgroundTask("lease", self._renew, every_s=_RENEW_S, failure=f"{location} cannot be renewed")

    @staticmethod
    def acquire(folder: str) -> Lease:
        """Take the lease of a folder.

        Raises:
            LeaseHeldError: another process holds it; the message names it.
        """
        location = storage.join(folder, LEASE_FILE)
        holder: Holder = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
        }
        existing = storage.read_versioned(location)
        if existing is not None and (reason := active_holder(existing)):
            raise LeaseHeldError(f"{folder} is being written by {reason}")
        version = storage.compare_and_swap(location, _encode(holder), existing.version if existing else None)
        if version is None:
            raise LeaseHeldError(f"{folder} has just been taken by another process")
        return Lease(location, version, holder)

    def check(self) -> None:
        """Raise LeaseLostError if another process has taken over the lease."""
        if self.is_lost:
            folder = self._location.removesuffix(f"/{LEASE_FILE}")
            raise LeaseLostError(f"{folder} has been taken over by {self.is_lost} after a failed renewal of the lease")

    def release(self) -> None:
        """Delete the lease's file, if this process holds it; without an answer of the storage it expires."""
        self._task.close()
        with contextlib.suppress(OSError), storage.timeout(FINAL_STORAGE_S):
            existing = None if self.is_lost else storage.read_versioned(self._location)
            if existing and self._is_ours(existing):
                storage.delete_file(self._location)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _renew(self) -> None:
        if self.is_lost:
            return
        # the content must change, or the version of an object would not
        with storage.timeout(_RENEW_S):
            version = storage.compare_and_swap(self._location, _encode(self._holder), self._version)
        if version is None:
            existing = storage.read_versioned(self._location)
            if existing and self._is_ours(existing):  # written by a renewal that ended in an error
                version = existing.version
            else:
                self.is_lost = _name(existing) if existing else "a process that has ended"
        self._version = version or self._version

    def _is_ours(self, existing: storage.Versioned) -> bool:
        return self._holder["id"].encode() in existing.content


def _encode(holder: Holder) -> bytes:
    return json.dumps({**holder, "renewed": time.time()}).encode()


def _name(existing: storage.Versioned) -> str:
    try:
        holder = json.loads(existing.content)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "an unknown process"


def active_holder(existing: storage.Versioned) -> str:
    """The holder of a lease, as text; "" where it has expired or its holder has ended."""
    age_s = time.time() - existing.changed_s
    if age_s > EXPIRES_S:
        return ""
    try:
        holder = json.loads(existing.content)
        if holder["machine"] == _machine() and not _runs_here(holder["pid"], holder["started"]):
            return ""
    except (ValueError, KeyError, TypeError):
        pass
    return f"{_name(existing)}, last renewed {max(age_s, 0):.0f} s ago; the lease expires after {EXPIRES_S:.0f} s"


def _machine() -> str:
    """Identifies this machine and container among others of the same name."""
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
