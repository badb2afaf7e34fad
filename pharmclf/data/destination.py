"""Where a job writes its results: not into the copy of the working directory that Ray deletes with the job."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pharmclf import storage
from pharmclf.config import ConfigError

ALLOWED = "PHARMCLF_RESULTS_IN_UPLOAD"


def lies_in_upload(location: str) -> bool:
    """Whether a location is in the copy of the working directory that a submitted job runs in."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    if not (job.get("runtime_env") or {}).get("working_dir") or storage.is_remote(location):
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
    if lies_in_upload(location) and os.environ.get(ALLOWED) != "1":
        raise ConfigError(
            f"{flag}: received {location}, which is in Ray's copy of the working directory and is deleted after the "
            f"job. Give {flag} s3://BUCKET/PREFIX or the absolute path of a folder that all nodes share; "
            f"{ALLOWED}=1 in the job's environment writes there all the same"
        )


def destination_warnings(location: str) -> list[str]:
    """What is said of results that are written there all the same: those of the demo, and those asked for."""
    if not lies_in_upload(location):
        return []
    return [f"{location} is in Ray's copy of the working directory and is deleted after the job; give --storage"]
