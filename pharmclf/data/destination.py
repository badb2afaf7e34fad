"""Where a job writes its results: not into the copy of the working directory that Ray deletes with the job."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from pharmclf import storage
from pharmclf.core.compat.ray import submitted_runtime_env
from pharmclf.core.errors import ConfigError

ALLOWED = "PHARMCLF_RESULTS_IN_UPLOAD"


def is_in_uploaded_working_dir(location: str) -> bool:
    """Whether a location is in the copy of the working directory that a submitted job runs in."""
    if not submitted_runtime_env().get("working_dir") or storage.is_remote(location):
        return False
    return Path(location).resolve().is_relative_to(Path.cwd().resolve())


def check_destination(flag: str, location: str) -> None:
    """See whether results last where a job writes them.

    Args:
        flag: that names the location, such as --storage.
        location: absolute, or a URI.

    Raises:
        ConfigError: they would be deleted with the copy of the working directory of a submitted job.
    """
    if is_in_uploaded_working_dir(location) and os.environ.get(ALLOWED) != "1":
        raise ConfigError(
            f"{flag}: received {location}, which is in Ray's copy of the working directory and is deleted after the "
            f"job. Give {flag} s3://BUCKET/PREFIX or the absolute path of a folder that all nodes share; "
            f"{ALLOWED}=1 in the job's environment writes there all the same"
        )


def destination_warnings(location: str) -> list[str]:
    """What is said of results that are written there all the same: those of the demo, and those asked for."""
    if not is_in_uploaded_working_dir(location):
        return []
    return [f"{location} is in Ray's copy of the working directory and is deleted after the job; give --storage"]


def check_new_folder(flag: str, out: str) -> Path:
    """The local folder that a job creates: it is not there yet, or empty.

    Raises:
        ConfigError: it is something else, or would be deleted with a submitted job.
    """
    check_destination(flag, storage.absolute(out))
    target, found = Path(storage.absolute(out)).resolve(), ""
    try:
        if not out:
            found = "no name"
        elif storage.is_remote(out):
            found = "a remote location"
        elif target.is_dir() and any(target.iterdir()):
            found = "a folder that is not empty; it is left as it is"
        elif target.exists() and not target.is_dir():
            found = "a file; it is left as it is"
        elif os.path.ismount(target):
            found = "the root of a mounted disk"
    except PermissionError as error:
        found = f"a place that cannot be read ({error.strerror})"
    if found:
        raise ConfigError(f"{flag}: received {out!r}, {found}. Give a local folder that is not there yet")
    return target


@contextlib.contextmanager
def atomic_folder(flag: str, target: Path) -> Iterator[Path]:
    """A folder to fill, which is renamed to the target after the block and deleted if the block fails.

    Args:
        flag: that names the target, such as --out.
        target: as `check_new_folder` returns it.

    Raises:
        ConfigError: the target cannot be written, or is taken by now.
    """
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:  # from before the folder is made, so that a signal leaves nothing
        try:
            part.mkdir(parents=True)
        except OSError as error:
            raise ConfigError(f"{flag}: {target}: {error.strerror}. Give a folder that can be written") from error
        yield part
        for path in part.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        try:
            part.rename(target)
        except OSError as error:
            raise ConfigError(f"{flag}: {target}: {error.strerror}. Give a folder that is not there yet") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
