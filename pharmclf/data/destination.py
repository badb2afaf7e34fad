"""Checks the location of a job's results, and creates folders atomically."""

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
    """Whether a location is in Ray's copy of the working directory, which is deleted with a submitted job."""
    if not submitted_runtime_env().get("working_dir") or storage.is_remote(location):
        return False
    return Path(location).resolve().is_relative_to(Path.cwd().resolve())


def check_destination(flag: str, location: str) -> None:
    """Check that results outlive the job.

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
            f"{ALLOWED}=1 in the job's environment allows it"
        )


def destination_warnings(location: str) -> list[str]:
    """Warnings on results that are deleted with the job: of the demo, or where the user allows it."""
    if not is_in_uploaded_working_dir(location):
        return []
    return [f"{location} is in Ray's copy of the working directory and is deleted after the job; give --storage"]


def check_new_folder(flag: str, out: str) -> Path:
    """The local folder that a job creates; it must be missing or empty.

    Raises:
        ConfigError: it is anything else, or would be deleted with a submitted job.
    """
    check_destination(flag, storage.absolute(out))
    target, problem = Path(storage.absolute(out)).resolve(), ""
    try:
        if not out:
            problem = "no name"
        elif storage.is_remote(out):
            problem = "a remote location"
        elif target.is_dir() and any(target.iterdir()):
            problem = "a folder that is not empty; it is left as it is"
        elif target.exists() and not target.is_dir():
            problem = "a file; it is left as it is"
        elif os.path.ismount(target):
            problem = "the root of a mounted disk"
    except OSError as error:
        problem = f"a place that cannot be read ({error.strerror})"
    if problem:
        raise ConfigError(f"{flag}: received {out!r}, {problem}. Give a local folder that does not exist yet")
    return target


@contextlib.contextmanager
def atomic_folder(flag: str, target: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to the target after the block, and deleted if the block fails.

    Args:
        flag: that names the target, such as --out.
        target: as `check_new_folder` returns it.

    Raises:
        ConfigError: the target cannot be written, or exists now.
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
            raise ConfigError(f"{flag}: {target}: {error.strerror}. Give a folder that does not exist yet") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
