"""Configurations and search spaces that come with the package."""

from __future__ import annotations

from pathlib import Path

PRESETS = Path(__file__).parents[1] / "presets"
SPACES = PRESETS / "spaces"
