"""Stable hashes of values and files: equal content gives an equal fingerprint, on every machine and version."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20


def fingerprint(value: Any) -> str:
    """Hash of a value made of dicts, lists, strings, numbers, booleans and None.

    Returns:
        32 hexadecimal digits (the first half of a sha256 of canonical JSON).

    Raises:
        TypeError: a value of another type.
        ValueError: a number that is not finite.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sha256_bytes(content: bytes) -> str:
    """The sha256 of some bytes, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: str | Path) -> str:
    """The sha256 of a local file, 64 hexadecimal digits; the file is read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
