"""Manifests of small data sets."""

from __future__ import annotations

import tempfile
from typing import Any

from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import cached_manifest


def build_manifest(data: str, **options: Any) -> Manifest:
    """Scan a data set, with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        return cached_manifest(data, cache, **options)
