"""The storage as a node reaches it: written, read back and deleted, how fast, and what exactly is wrong if it fails."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pharmclf import storage
from pharmclf.core.errors import error_reason
from pharmclf.core.units import format_size
from pharmclf.diagnostics.clock_skew import check_clock_skew, min_clock_offset_s
from pharmclf.diagnostics.disk_check import nearest_existing_parent
from pharmclf.diagnostics.results import Finding, fail, ok, warn

StorageFailureKind = Literal[
    "no credentials", "wrong credentials", "wrong clock", "no bucket", "no rights", "read-only", "not reachable",
    "full", "another region", "another place", "other",
]  # fmt: skip

BULK_BYTES = 8 << 20
"""Size of the file whose writing and reading is timed, where speed is asked for."""
_SMALL_BYTES = 4096  # more than a full disk takes
_SHUTDOWN_TIMEOUT_S = 1.0  # patience with the deletion of a probe file after a failure
_GRAIN_S = 1.0  # object stores tell times in whole seconds
_MIN_BYTES, _SCARCE_BYTES = 100 << 20, 2 << 30
_SLOW_BYTES_PER_S, _SLOW_S = 5e6, 0.5
_WRONG_CREDENTIALS = {
    "SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken", "ExpiredToken", "TokenRefreshRequired",
    "InvalidSecurity", "AuthorizationHeaderMalformed",
}  # fmt: skip
_KINDS_BY_CODE: dict[str, StorageFailureKind] = {
    **dict.fromkeys(_WRONG_CREDENTIALS, "wrong credentials"),
    **dict.fromkeys(("RequestTimeTooSkewed", "RequestExpired"), "wrong clock"),
    **dict.fromkeys(("QuotaExceeded", "InsufficientCapacity", "InsufficientStorage"), "full"),
}
_KINDS_BY_NUMBER: dict[int, StorageFailureKind] = {
    errno.EROFS: "read-only",
    errno.EACCES: "no rights",
    errno.EPERM: "no rights",
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    **dict.fromkeys((errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EIO), "not reachable"),
}
_REMEDIES: dict[StorageFailureKind, str] = {
    "no credentials": "give this node a role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "wrong credentials": "the store knows no such key, or it is another's secret, or it has expired: look at "
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_PROFILE of this node, or at its role",
    "wrong clock": "the store refuses requests from a clock so far off: let chrony or systemd-timesyncd set it",
    "no bucket": "make the bucket, or correct --storage, or AWS_ENDPOINT_URL",
    "no rights": "the key is right and may not do this: let it list, read, write and delete below --storage",
    "read-only": "it can be read and not written: mount it for writing, let the key write, or give another --storage",
    "not reachable": "see that it runs, that AWS_ENDPOINT_URL is right on this node, and that no firewall or proxy "
    "stands between; a mount whose server is gone must be mounted anew",
    "full": "delete what is not wanted (jobs/activations.py deletes kept activations), or give another --storage",
    "another region": "set AWS_REGION to the bucket's region",
    "another place": "give an s3:// prefix, or a folder that all nodes mount",
    "other": "give a folder or an s3:// prefix that can be written",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StorageInfo:
    """How a node gets on with the storage."""

    location: str
    failed: str = ""
    """What could not be done: write, read, delete; "" where all went well."""
    kind: StorageFailureKind | None = None
    """Why; None where all went well."""
    reason: str = ""
    """The same in the storage's words."""
    request_s: float = 0.0
    """Of a small reading."""
    write_bytes_per_s: float | None = None
    read_bytes_per_s: float | None = None
    offset_s: float = 0.0
    """What its clock is ahead of this node's at least."""
    free_bytes: int | None = None
    """None: it does not tell."""
    left: str = ""
    """A probe file that could not be deleted."""


@dataclass
class _StorageProbe:
    """Where the trial of a storage has come to."""

    step: str = "write"
    measured: dict[str, Any] = field(default_factory=dict)


def probe_storage(location: str, *, bulk_bytes: int = 0, beacon: str = "") -> StorageInfo:
    """Write a file, read it back and delete it.

    Args:
        location: folder or prefix; a folder that is not there is not made, the nearest one around it is tried.
        bulk_bytes: size of a file whose writing and reading is timed; 0: none.
        beacon: a file that another node has written there, which must be seen; "": none.
    """
    trial, facts, place = _StorageProbe(), StorageInfo(location=location), ""
    try:
        place = _probe_file(location)
        _run_probe(place, bulk_bytes, trial)
        trial.step = "find what another node has written there"
        if beacon and not storage.is_file(beacon):
            reason = f"{beacon}, which another node has just written, is not there"
            facts = replace(facts, failed=trial.step, kind="another place", reason=reason)
    except OSError as error:
        kind = _refine(diagnose(error), location, trial.step)
        facts = replace(facts, failed=trial.step, kind=kind, reason=_reason(error, place))
        left = place if trial.step == "delete" or not place else _delete_probe_file(place)
        facts = replace(facts, left=left)
    return replace(facts, free_bytes=_free_bytes(location), **trial.measured)


def _probe_file(location: str) -> str:
    location = storage.absolute(location)
    folder = location if storage.is_remote(location) else nearest_existing_parent(location)
    return storage.join(folder, f".pharmclf-doctor-{uuid.uuid4().hex[:12]}")


def _run_probe(place: str, bulk_bytes: int, trial: _StorageProbe) -> None:
    """Write, read and delete, keeping times in the trial."""
    content = os.urandom(_SMALL_BYTES)
    began = time.time()
    storage.write_bytes(place, content)
    ended = time.time()
    trial.step = "read"
    before = time.perf_counter()
    found = storage.read_versioned(place)
    trial.measured["request_s"] = time.perf_counter() - before
    if found is None or found.content != content:
        raise OSError(f"{place}: what was written did not come back")
    trial.measured["offset_s"] = min_clock_offset_s(began, ended, found.changed_s, _GRAIN_S)
    if bulk_bytes:
        trial.step = "write"
        before = time.perf_counter()
        storage.write_bytes(place, os.urandom(bulk_bytes))
        trial.measured["write_bytes_per_s"] = bulk_bytes / (time.perf_counter() - before)
        trial.step = "read"
        before = time.perf_counter()
        storage.read_bytes(place)
        trial.measured["read_bytes_per_s"] = bulk_bytes / (time.perf_counter() - before)
    trial.step = "delete"
    storage.delete_file(place)


def _delete_probe_file(place: str) -> str:
    """Delete a probe file after a failure -> its name where it stays."""
    with storage.timeout(_SHUTDOWN_TIMEOUT_S):
        try:
            storage.delete_file(place)
        except storage.StorageUnavailableError:
            return ""  # nothing is known of it: most likely it was never written
        except OSError:
            with contextlib.suppress(OSError):
                return place if storage.is_file(place) else ""
    return ""


def _reason(error: OSError, place: str) -> str:
    """An error in one sentence, without the probe file's name and without a remedy."""
    text = error_reason(error)
    return (text.replace(f"{place}: ", "") if place else text).partition(". Check ")[0]


@contextlib.contextmanager
def write_heartbeat_file(location: str) -> Iterator[str]:
    """Within, a file stands in the storage that all nodes must see -> where."""
    place = _probe_file(location)
    storage.write_bytes(place, b"beacon")
    try:
        yield place
    finally:
        with contextlib.suppress(OSError):
            storage.delete_file(place)


def diagnose(error: OSError) -> StorageFailureKind:
    """What kind of trouble an error of the storage is; pure."""
    text = str(error)
    if isinstance(error, storage.StorageUnavailableError | TimeoutError):
        return "not reachable"
    code = re.search(r"access denied[^(]*\((\w+)", text)
    if code and code[1] in _KINDS_BY_CODE:
        return _KINDS_BY_CODE[code[1]]
    if isinstance(error, PermissionError):
        return "no rights"
    if isinstance(error, FileNotFoundError) and "no bucket" in text:
        return "no bucket"
    if "another region" in text:
        return "another region"
    return _KINDS_BY_NUMBER.get(error.errno or 0, "other")


def _refine(kind: StorageFailureKind, location: str, step: str) -> StorageFailureKind:
    """The kind, told more exactly by what else works."""
    if kind not in ("no rights", "wrong credentials"):
        return kind
    if location.startswith("s3://") and not _has_credentials():
        return "no credentials"
    if kind == "no rights" and step == "write" and storage.is_remote(location):
        with contextlib.suppress(OSError):
            storage.list_folders(location)
            return "read-only"
    return kind


def _has_credentials() -> bool:
    import boto3  # slow to import, and wanted after a refusal alone

    return boto3.session.Session().get_credentials() is not None


def _free_bytes(location: str) -> int | None:
    if storage.is_remote(location):
        return None
    with contextlib.suppress(OSError):
        return shutil.disk_usage(nearest_existing_parent(storage.absolute(location))).free
    return None


def check_storage_access(facts: StorageInfo) -> list[Finding]:
    """Whether a run can live there, and the storage's clock agrees."""
    if facts.failed == "delete" and facts.kind != "not reachable":
        remedy = f"let the key delete below --storage, and delete {facts.left}: old checkpoints stay for ever otherwise"
        return [warn("storage", f"{facts.location}: nothing can be deleted: {facts.reason}", remedy)]
    if facts.kind is not None:
        left = f"; delete {facts.left}, which is left" if facts.left else ""
        text = f"{facts.location}: {facts.kind}: could not {facts.failed}: {facts.reason}"
        return [fail("storage", text, _REMEDIES[facts.kind] + left)]
    return [_check_speed(facts), check_clock_skew(facts.offset_s, "the storage")]


def _check_speed(facts: StorageInfo) -> Finding:
    text = f"{facts.location}: write, read, delete work; {1e3 * facts.request_s:.1f} ms a request"
    speeds = facts.write_bytes_per_s, facts.read_bytes_per_s
    if speeds[0] is not None and speeds[1] is not None:
        text += f", writes {format_size(speeds[0])}/s, reads {format_size(speeds[1])}/s"
    if facts.free_bytes is not None:
        text += f", {format_size(facts.free_bytes)} free"
        if facts.free_bytes < _MIN_BYTES:
            return fail("storage", text, f"{_REMEDIES['full']}; {format_size(_MIN_BYTES)} are the least")
        if facts.free_bytes < _SCARCE_BYTES:
            return warn("storage", text, _REMEDIES["full"])
    if facts.request_s > _SLOW_S or any(speed is not None and speed < _SLOW_BYTES_PER_S for speed in speeds):
        return warn(
            "storage", text, "slow: take a store in the region of the nodes; --activations auto reads less of it"
        )
    return ok("storage", text)
