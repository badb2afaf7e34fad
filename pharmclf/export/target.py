"""The place that an export goes to: filled whole, or left as it was; on disk or in an object store."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.data.destination import check_destination


@contextlib.contextmanager
def whole_folder(out: str, *, last: str) -> Iterator[Path]:
    """A local folder to fill; it goes to its place when the block ends, and vanishes when the block fails.

    Args:
        out: a local folder that is not there yet or empty, or a prefix of an object store with nothing below.
        last: name of the file that is uploaded behind all others.

    Raises:
        ConfigError: `out` is taken, or cannot be written.
        StorageUnavailable: the storage does not answer.
    """
    check_destination("--out", storage.absolute(out))
    with _in_object_store(out, last) if storage.is_remote(out) else _on_disk(out) as part:
        yield part


@contextlib.contextmanager
def _in_object_store(out: str, last: str) -> Iterator[Path]:
    if storage.exists(out):
        raise _taken(out, "something there already; it is left as it is")
    with tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
        part = Path(folder)
        yield part
        try:
            storage.upload_folder(part, out, last=last)
        except BaseException:
            with contextlib.suppress(OSError):
                storage.delete_folder(out)
            raise


@contextlib.contextmanager
def _on_disk(out: str) -> Iterator[Path]:
    target = Path(storage.absolute(out)).resolve()
    if not out or os.path.ismount(target):
        raise _taken(out, "no folder of its own")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise _taken(out, "something there already; it is left as it is")
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}. Give a folder that can be written") from error
    try:
        yield part
        for path in part.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        try:
            part.rename(target)
        except OSError as error:
            raise ConfigError(f"--out {out}: {error.strerror}. Give a folder that is not there yet") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _taken(out: str, found: str) -> ConfigError:
    return ConfigError(f"--out: received {out!r}, {found}. Give a folder or s3:// prefix that is not there yet")
