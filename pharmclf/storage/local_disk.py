"""Folder and bound of a cache on a node's local disk, from the environment."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

from pharmclf.core.errors import ConfigError


def cache_folder(variable: str, name: str) -> Path:
    """The folder that an environment variable names, else one for this user among the temporary files."""
    given = os.environ.get(variable)
    return Path(given).expanduser() if given else Path(tempfile.gettempdir()) / f"pharmclf-{name}-{os.getuid()}"


def cache_limit(variable: str) -> float | None:
    """The bound in bytes, from an environment variable in gigabytes; None: none is given.

    Raises:
        ConfigError: it is not a number above 0.
    """
    given = os.environ.get(variable, "")
    if not given:
        return None
    try:
        limit = float(given)
    except ValueError:
        limit = -1.0
    if not 0 < limit < math.inf:
        raise ConfigError(f"{variable}: received {given!r}, expected a number of gigabytes above 0")
    return limit * 1e9
