"""The place that an export goes to: filled whole, or left as it was; on disk or in an object store."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pharmclf import storage
from pharmclf.core.errors import ConfigError
from pharmclf.data.destination import atomic_folder, check_new_folder


@contextlib.contextmanager
def atomic_output_dir(out: str, *, last: str) -> Iterator[Path]:
    """A local folder to fill; it goes to its place when the block ends, and vanishes when the block fails.

    Args:
        out: a local folder that is not there yet or empty, or a prefix of an object store with nothing below.
        last: name of the file that is uploaded behind all others.

    Raises:
        ConfigError: `out` is taken, or cannot be written.
        StorageUnavailableError: the storage does not answer.
    """
    remote = storage.is_remote(out)
    with _in_object_store(out, last) if remote else atomic_folder("--out", check_new_folder("--out", out)) as part:
        yield part


@contextlib.contextmanager
def _in_object_store(out: str, last: str) -> Iterator[Path]:
    if storage.exists(out):
        raise ConfigError(
            f"--out: received {out!r}, something there already; it is left as it is. Give a prefix with nothing below"
        )
    with tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
        part = Path(folder)
        yield part
        try:
            storage.upload_folder(part, out, last=last)
        except BaseException:
            with contextlib.suppress(OSError):
                storage.delete_folder(out)
            raise
