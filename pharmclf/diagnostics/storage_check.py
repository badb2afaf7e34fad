"""Check of the storage as a node reaches it: writing, reading and deleting, their speed, and the exact failure."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pharmclf import storage
from pharmclf.core.errors import error_reason
from pharmclf.core.units import format_size
from pharmclf.diagnostics.machine_check import nearest_existing_parent
from pharmclf.diagnostics.network_check import check_clock_skew, min_clock_offset_s
from pharmclf.diagnostics.results import Finding, fail, ok, warn

StorageFailureKind = Literal[
    "no credentials", "wrong credentials", "wrong clock", "no bucket", "no rights", "read-only", "not reachable",
    "full", "another region", "another place", "other",
]  # fmt: skip

BULK_BYTES = 8 << 20
"""Size of the timed file, where speed is measured."""
_SMALL_BYTES = 4096  # more than fits on a full disk
_DELETE_TIMEOUT_S = 1.0  # of a probe file after a failure
_CLOCK_GRAIN_S = 1.0  # object stores report times in whole seconds
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
    "wrong credentials": "the key is unknown or expired, or the secret is wrong: correct AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY and AWS_PROFILE of this node, or its role",
    "wrong clock": "the store refuses requests from a clock so far off: let chrony or systemd-timesyncd set it",
    "no bucket": "create the bucket, or correct --storage, or AWS_ENDPOINT_URL",
    "no rights": "the key is right but lacks the rights: let it list, read, write and delete below --storage",
    "read-only": "it can be read and not written: mount it for writing, let the key write, or give another --storage",
    "not reachable": "check that it runs, that AWS_ENDPOINT_URL is right on this node, and that no firewall or proxy "
    "blocks it; mount again where the server of a mount is gone",
    "full": "delete old files (pharmclf cache deletes the feature cache), or give another --storage",
    "another region": "set AWS_REGION to the bucket's region",
    "another place": "give an s3:// prefix, or a folder that all nodes mount",
    "other": "give another one, that can be written",
}  # fmt: skip


@dataclass(kw_only=True)
class StorageInfo:
    """The result of the probe of a storage."""

    location: str
    failed: str = ""
    """The step that failed: write, read, delete, find the file of another node; "" where none did."""
    kind: StorageFailureKind | None = None
    """Why; None where no step failed."""
    reason: str = ""
    """Why, in the words of the storage."""
    request_s: float = 0.0
    """Of reading a small file."""
    write_bytes_per_s: float | None = None
    read_bytes_per_s: float | None = None
    offset_s: float = 0.0
    """The least offset of its clock from this node's; negative: it is behind."""
    free_bytes: int | None = None
    """None: unknown."""
    left: str = ""
    """A probe file that could not be deleted."""


def probe_storage(location: str, *, bulk_bytes: int = 0, heartbeat_file: str = "") -> StorageInfo:
    """Write a file, read it back and delete it.

    Args:
        location: folder or prefix; in place of a missing folder the nearest existing parent is probed.
        bulk_bytes: size of a file whose writing and reading is timed; 0: none.
        heartbeat_file: a file of another node, which must be visible here; "": none.
    """
    info, path = StorageInfo(location=location, failed="write"), ""
    try:
        path = _probe_file(location)
        _run_probe(path, bulk_bytes, info)
        info.failed = "find the file of another node"
        if heartbeat_file and not storage.is_file(heartbeat_file):
            info.kind, info.reason = "another place", f"{heartbeat_file}, just written by another node, is missing"
        else:
            info.failed = ""
    except OSError as error:
        info.kind, info.reason = _refine(diagnose(error), location, info.failed), _reason(error, path)
        info.left = path if info.failed == "delete" or not path else _delete_probe_file(path)
    if not storage.is_remote(location):
        with contextlib.suppress(OSError):
            info.free_bytes = shutil.disk_usage(nearest_existing_parent(storage.absolute(location))).free
    return info


def _probe_file(location: str) -> str:
    location = storage.absolute(location)
    folder = location if storage.is_remote(location) else nearest_existing_parent(location)
    return storage.join(folder, f".pharmclf-doctor-{uuid.uuid4().hex[:12]}")


def _run_probe(path: str, bulk_bytes: int, info: StorageInfo) -> None:
    """Write, read and delete a file; `info` gets the times, and in `failed` the current step."""
    content = os.urandom(_SMALL_BYTES)
    began = time.time()
    storage.write_bytes(path, content)
    ended = time.time()
    info.failed = "read"
    before = time.perf_counter()
    found = storage.read_versioned(path)
    info.request_s = time.perf_counter() - before
    if found is None or found.content != content:
        raise OSError(f"{path}: the content that was read is not the one that was written")
    info.offset_s = min_clock_offset_s(began, ended, found.changed_s, _CLOCK_GRAIN_S)
    if bulk_bytes:
        info.failed = "write"
        before = time.perf_counter()
        storage.write_bytes(path, os.urandom(bulk_bytes))
        info.write_bytes_per_s = bulk_bytes / (time.perf_counter() - before)
        info.failed = "read"
        before = time.perf_counter()
        storage.read_bytes(path)
        info.read_bytes_per_s = bulk_bytes / (time.perf_counter() - before)
    info.failed = "delete"
    storage.delete_file(path)


def _delete_probe_file(path: str) -> str:
    """Delete a probe file after a failure -> its name where it remains."""
    with storage.timeout(_DELETE_TIMEOUT_S):
        try:
            storage.delete_file(path)
        except storage.StorageUnavailableError:
            return ""  # most likely it was never written
        except OSError:
            with contextlib.suppress(OSError):
                return path if storage.is_file(path) else ""
    return ""


def _reason(error: OSError, path: str) -> str:
    """An error in one sentence, without the name of the probe file and without a remedy."""
    text = error_reason(error)
    return (text.replace(f"{path}: ", "") if path else text).partition(". Check ")[0]


@contextlib.contextmanager
def write_heartbeat_file(location: str) -> Iterator[str]:
    """Inside the block, a file that all nodes must see is in the storage -> its location."""
    path = _probe_file(location)
    storage.write_bytes(path, b"heartbeat")
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            storage.delete_file(path)


def diagnose(error: OSError) -> StorageFailureKind:
    """The kind of an error of the storage; pure."""
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
    """The kind, more exactly: from the credentials, and from whether a listing works."""
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
    import boto3  # slow to import, and needed only after a refusal

    return boto3.session.Session().get_credentials() is not None


def check_storage_access(info: StorageInfo) -> list[Finding]:
    """Whether a run can write its files there, and the storage's clock agrees; pure."""
    if info.failed == "delete" and info.kind != "not reachable":
        remedy = f"let the key delete below --storage, or old checkpoints stay for ever; delete {info.left}"
        return [warn("storage", f"{info.location}: nothing can be deleted: {info.reason}", remedy)]
    if info.kind is not None:
        remedy = _REMEDIES[info.kind]
        if info.kind == "other":
            remedy = f"give a {storage.place_word(info.location)} that can be written"
        remedy += f"; delete {info.left}, which remains" if info.left else ""
        kind = "" if info.kind == "other" else f"{info.kind}: "
        return [fail("storage", f"{info.location}: {kind}could not {info.failed}: {info.reason}", remedy)]
    return [_check_speed(info), check_clock_skew(info.offset_s, "the storage")]


def _check_speed(info: StorageInfo) -> Finding:
    text = f"{info.location}: write, read, delete work; {1e3 * info.request_s:.1f} ms a request"
    write, read = info.write_bytes_per_s, info.read_bytes_per_s
    if write is not None and read is not None:
        text += f", writes {format_size(write)}/s, reads {format_size(read)}/s"
    if info.free_bytes is not None:
        text += f", {format_size(info.free_bytes)} free"
        if info.free_bytes < _MIN_BYTES:
            return fail("storage", text, f"{_REMEDIES['full']}; at least {format_size(_MIN_BYTES)} are needed")
        if info.free_bytes < _SCARCE_BYTES:
            return warn("storage", text, _REMEDIES["full"])
    if info.request_s > _SLOW_S or any(speed is not None and speed < _SLOW_BYTES_PER_S for speed in (write, read)):
        remedy = "slow: use a store in the region of the nodes; --feature-cache auto reads less of it"
        return warn("storage", text, remedy)
    return ok("storage", text)
