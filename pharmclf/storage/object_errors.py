"""Classifies the errors of object stores, and explains them to the user."""

from __future__ import annotations

import re

from obstore import exceptions

from pharmclf.core.errors import first_line
from pharmclf.storage.types import StorageUnavailableError

_UPLOAD_GONE = "NoSuchUpload"  # the answer to a repeated completion of an upload that was completed before
_STALE = ("ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "TokenRefreshRequired", "RequestExpired")


class NoBucketError(FileNotFoundError):
    """The bucket does not exist."""


def explain_error(error: Exception, root: str, path: str, endpoint: str, timeout_s: float) -> Exception:
    """An error with the location, the answer of the server, and what to check.

    Args:
        error: of a request.
        root: of the store, such as s3://bucket.
        path: the key.
        endpoint: of the server; "": the default.
        timeout_s: seconds for which the request was repeated.
    """
    where = f"{root}/{path}".rstrip("/")
    text, status, code = _error_text(error)
    at = f" at {endpoint}" if endpoint else ""
    if code == "NoSuchBucket":
        return NoBucketError(f"{where}: no bucket {root}{at}. Check its name and AWS_ENDPOINT_URL")
    if isinstance(error, FileNotFoundError) and code != _UPLOAD_GONE:
        return FileNotFoundError(f"{where}: no such object{at}")
    denied = isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError))
    if denied or status in (401, 403) or is_stale(error):
        return PermissionError(
            f"{where}: access denied{at} ({code or f'HTTP {status}'}). Check AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or the machine's role, and its rights on the bucket"
        )
    if code == "PermanentRedirect" or " 301 " in text or "redirect without LOCATION" in text:
        return OSError(f"{where}: the bucket is in another region{at}. Set AWS_REGION to its region")
    gone = status == 429 or status >= 500 or code == _UPLOAD_GONE
    if gone or re.search(r"HTTP error|timed? ?out|after \d+ retries", text, re.IGNORECASE):
        what = f"HTTP {status} {code}".rstrip() if status else "no connection, or no answer"
        return StorageUnavailableError(
            f"{where}: {what}{at} for {timeout_s:g} s. Check that the storage is up and can be reached; "
            "the same command resumes"
        )
    return error if isinstance(error, OSError) else OSError(f"{where}: {first_line(error, 300)}")


def _error_text(error: Exception) -> tuple[str, int, str]:
    """Text, HTTP status or 0, and S3's code or "", of an error."""
    text = re.sub(r"https?://\S+", "", str(error).split("Debug source:")[0])  # an object may be named timeout.jpg
    status = re.search(r"status code: (\d+)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    return text, int(status[1]) if status else 0, code[1] if code else ""


def is_stale(error: Exception) -> bool:
    """Whether new credentials may help; an error of a HEAD request has only a status."""
    _, status, code = _error_text(error)
    return code in _STALE or (not code and status in (400, 401, 403))
