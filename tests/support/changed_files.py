"""Data sets whose files are not what their manifest says, and copies whose files may be changed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from pharmclf.data.manifest import Manifest

CHANGED = "changed since the data set was listed"


def with_changed(manifest: Manifest, rows: Iterable[int]) -> Manifest:
    """A manifest that says another sha256 of some rows."""
    table = manifest.table.copy()
    table.loc[list(rows), "sha256"] = "0" * 64
    return Manifest(table, manifest.class_names, manifest.root)


def with_copied_files(manifest: Manifest, folder: Path) -> Manifest:
    """The same data set in a folder of its own."""
    shutil.copytree(manifest.root, folder)
    paths = [str(folder / Path(path).relative_to(manifest.root)) for path in manifest.table["path"]]
    return Manifest(manifest.table.assign(path=paths), manifest.class_names, str(folder))
