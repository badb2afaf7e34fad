"""File systems in memory for tests: small ones that fill up, and ones that cannot be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Mounted = Callable[[str], Path]
"""Mounts one for the test -> its folder; takes mount's options."""
