"""Compares the manifest of a run with its images when the run is resumed; the run keeps the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.console import Say, show_activity
from pharmclf.core.errors import ConfigError
from pharmclf.data.dataset_listing import list_dataset
from pharmclf.data.folder_layouts import label_key
from pharmclf.data.label_corrections import read_corrections
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import MANIFEST_FILE, cached_manifest, data_location, layout_options, manifest_cache
from pharmclf.data.scan import ProgressCallback


@dataclass(frozen=True)
class DatasetChanges:
    """How a data set differs from the manifest of a run; relative paths, sorted."""

    added: Sequence[str] = ()
    """Files that are not in the manifest."""
    missing: Sequence[str] = ()
    """Files of usable rows that do not exist."""
    changed: Sequence[str] = ()
    """Files of usable rows that have another size or content."""
    relabelled: Sequence[str] = ()
    """Files of usable rows that have another label."""

    def text(self) -> str:
        """The changes as one line; "" where there are none."""
        parts = [
            _format_part(self.added, "new file is", "new files are", "not used"),
            _format_part(self.missing, "file is", "files are", "gone"),
            _format_part(self.changed, "file has", "files have", "changed"),
            _format_part(self.relabelled, "file has", "files have", "another label now, which is not used"),
        ]
        return "; ".join(part for part in parts if part)


def _format_part(paths: Sequence[str], one: str, several: str, state: str) -> str:
    if not paths:
        return ""
    first = f"the first is {paths[0]}" if len(paths) > 1 else paths[0]
    return f"{len(paths):,} {one if len(paths) == 1 else several} {state} ({first})"


def read_run_manifest(folder: str, fingerprint: str) -> Manifest | None:
    """Read the manifest from a run's folder; None where it is missing, or of other data.

    Args:
        fingerprint: of the run's data, from its record.
    """
    location = storage.join(folder, MANIFEST_FILE)
    if not storage.is_file(location):
        return None
    try:
        manifest = Manifest.read(location)
    except ConfigError:
        return None
    return manifest if manifest.fingerprint == fingerprint else None


def update_run_manifest(
    config: RunConfig,
    folder: str,
    manifest: Manifest,
    say: Say,
    progress: ProgressCallback | None = None,
) -> Manifest:
    """The manifest of a run with the present locations of its images; report how the images differ from it.

    At the same location, names and sizes are compared, and no file is read. At another location every file is read
    once, and compared by its sha256.

    Raises:
        ConfigError: no images there, or more of the run's are missing or changed than `max_invalid` accepts.
    """
    data, reading = data_location(config), layout_options(config)
    with show_activity("listing the images"):
        listing = list_dataset(data, reading)
    corrected = read_corrections(config.labels, listing.root) if config.labels else {}
    if listing.root == manifest.root:
        labels = {item.location: item.label for item in listing.items} | corrected
        changes = compare_files(manifest, {item.location: item.size_bytes for item in listing.items}, labels)
    else:
        present = cached_manifest(
            data, manifest_cache(config.storage), progress=progress, min_classes=1, reading=reading
        )
        manifest = _relocate(manifest, present.root)
        contents, labels = (
            dict(zip(present.table["path"], present.table[name], strict=True)) for name in ("sha256", "label")
        )
        changes = compare_files(manifest, contents, labels | corrected, by="sha256")
    lost = len(changes.missing) + len(changes.changed)
    share = (lost + len(manifest.quarantined)) / max(1, len(manifest.table))
    if lost and share > config.max_invalid_share:
        raise ConfigError(
            f"run {folder} started with other images than {config.data} has now: of its {len(manifest.table):,}, "
            f"{changes.text()}; {share:.1%} are bad, expected at most {config.max_invalid_share:.1%}. Restore the "
            f"files, "
            "accept more with --max-invalid, or give a new --name"
        )
    if text := changes.text():
        way = f"; a new run with --init-from {folder}, once this one is complete, uses new files and keeps the splits"
        say(f"note: the run keeps the images that it started with: {text}{way if changes.added else ''}")
    return manifest


def compare_files(
    manifest: Manifest, files: Mapping[str, int | str], labels: Mapping[str, str], *, by: str = "size_bytes"
) -> DatasetChanges:
    """How files differ from a manifest.

    Args:
        manifest: of the run.
        files: location -> size in bytes, or sha256; of the listed files.
        labels: location -> label, of the same files.
        by: the column of the manifest to compare with `files`.
    """
    rows, prefix, known = manifest.ok, manifest.root.rstrip("/") + "/", set(manifest.table["path"])
    missing, changed, relabelled = [], [], []
    for path, value, label in zip(rows["path"], rows[by], rows["label"], strict=True):
        relative = path.removeprefix(prefix)
        now = files.get(path)  # 0 or "" also of a file of a list that is not there
        if not now and (storage.is_remote(path) or not storage.is_file(path)):
            missing.append(relative)
        elif now is None:  # it exists, and is not listed
            continue
        elif now != value:
            changed.append(relative)
        elif label_key(labels[path]) != label_key(label):
            relabelled.append(relative)
    added = sorted(path.removeprefix(prefix) for path in files if path not in known)
    return DatasetChanges(added, missing, changed, relabelled)


def _relocate(manifest: Manifest, root: str) -> Manifest:
    """A copy with the files below another folder."""
    prefix = manifest.root.rstrip("/") + "/"
    table = manifest.table.copy()
    table["path"] = [
        storage.join(root, path.removeprefix(prefix)) if path.startswith(prefix) else path for path in table["path"]
    ]
    return replace(manifest, table=table, root=root)
