"""Data sets whose files are not what their manifest says, without a file being touched."""

from __future__ import annotations

from collections.abc import Iterable

from pharmclf.data.manifest import Manifest

CHANGED = "changed since the data set was listed"


def with_changed(manifest: Manifest, rows: Iterable[int]) -> Manifest:
    """A manifest that says another sha256 of some rows."""
    table = manifest.table.copy()
    table.loc[list(rows), "sha256"] = "0" * 64
    return Manifest(table, manifest.class_names, manifest.root)
