"""S3 without obstore: settings from the variables and files of all AWS tools, and a listing of arbitrary keys.

obstore ends the listing of a bucket at a key such as set/a//b.jpg.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

_CREDENTIALS_FOR = timedelta(minutes=5)  # then they are read again: files change, tokens expire
_RENEWED_EARLY = timedelta(minutes=5)  # obstore renews them so long before they expire
_RETRIES = 3  # of boto3, which are quick; `ObjectStore` repeats a request until the timeout


def settings() -> dict[str, Any]:
    """Endpoint, region and credentials for obstore, from the variables and files of all AWS tools."""
    import boto3  # slow to import, and only for s3://
    import botocore.session

    profile = botocore.session.get_session()  # boto3's own session has no method for a profile's endpoint_url
    session, scoped = boto3.session.Session(botocore_session=profile), profile.get_scoped_config()
    named = (os.environ.get("AWS_ENDPOINT_URL_S3"), os.environ.get("AWS_ENDPOINT_URL"), scoped.get("endpoint_url"))
    endpoint = next((value for value in named if value), "")
    options: dict[str, Any] = {"region": _region(session)}
    if endpoint:
        options["endpoint"] = endpoint
    if session.get_credentials() is None:
        options["skip_signature"] = True  # public buckets
    else:
        options["credential_provider"] = _credentials
    return options


def _credentials() -> dict[str, Any]:
    """The present credentials, from a new session that reads files and roles again."""
    import boto3

    known = boto3.session.Session().get_credentials()
    if known is None:
        raise PermissionError("no AWS credentials any more")
    frozen = known.get_frozen_credentials()
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": datetime.now(UTC) + _CREDENTIALS_FOR + _RENEWED_EARLY,
    }


def _region(session: Any) -> str:
    return os.environ.get("AWS_REGION") or session.region_name or "us-east-1"


def is_refused(error: Exception) -> bool:
    """Whether obstore has refused a key of a listing."""
    return "invalid path" in str(error.__cause__ or error)


def list_pages(
    root: str, endpoint: str, _opened: Any, prefix: str | None, *, offset: str | None, chunk_size: int
) -> Iterator[list[dict[str, Any]]]:
    """As `obstore.list`, by boto3; an object whose key obstore refuses has its reason as `unreadable`.

    Args:
        root: s3://bucket.
        endpoint: of the server; "": Amazon's.
        prefix: as a folder; None: the whole bucket.
        offset: list keys after this one; None: all keys.
        chunk_size: maximum objects of a page.

    Raises:
        OSError: the server refuses, or does not answer; with text that `ObjectStore` classifies.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    client = _client(endpoint)
    request = {"Bucket": root.removeprefix("s3://"), "Prefix": f"{prefix}/" if prefix else "", "MaxKeys": chunk_size}
    if offset is not None:
        request["StartAfter"] = offset
    try:
        for page in client.get_paginator("list_objects_v2").paginate(**request):
            if objects := page.get("Contents"):
                yield [_item(listed) for listed in objects]
    except ClientError as error:
        status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
        raise OSError(f"status code: {status} <Code>{code}</Code>") from error
    except BotoCoreError as error:
        raise OSError(f"HTTP error: {error}") from error


def _item(listed: dict[str, Any]) -> dict[str, Any]:
    key = listed["Key"]
    item = {"path": key, "size": listed["Size"], "last_modified": listed["LastModified"]}
    return item | ({"unreadable": reason} if (reason := _reason(key)) and not key.endswith("/") else {})


def _reason(key: str) -> str:
    """Why obstore refuses a key; "" where it does not."""
    parts = key.split("/")
    if "" in parts:
        return "the key has an empty part (//): copy the object to another key"
    if "." in parts or ".." in parts:
        return "the key has a part . or ..: copy the object to another key"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in key):
        return "the key has a control character: copy the object to another key"
    return ""


def _client(endpoint: str) -> Any:
    """A boto3 client with the settings of `settings`."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    session = boto3.session.Session()
    unsigned = {"signature_version": UNSIGNED} if session.get_credentials() is None else {}
    style = {"s3": {"addressing_style": "path"}} if endpoint else {}
    config = Config(retries={"total_max_attempts": _RETRIES, "mode": "standard"}, **style, **unsigned)
    return session.client("s3", region_name=_region(session), endpoint_url=endpoint or None, config=config)
