"""Corrections of labels: a list of images with other labels than their folders or lists give, and of some to drop."""

from __future__ import annotations

from dataclasses import replace

from pharmclf import storage
from pharmclf.core.errors import ConfigError, closest_names
from pharmclf.core.units import format_count, format_examples
from pharmclf.data.list_files import refusing_unreadable, resolve_path
from pharmclf.data.list_tables import LIST_EXTENSIONS, read_list
from pharmclf.data.manifest import EXCLUDED, OK, Manifest

DROP = "drop"
"""In place of a label: the image is left out. Where it is a class, it means that."""


def read_corrections(source: str, root: str) -> dict[str, str]:
    """Read the labels of a list: location of an image -> label, or `DROP`.

    Args:
        source: a CSV or Parquet file with the columns path, absolute or relative to `root`, and label.
        root: of the images.

    Raises:
        ConfigError: no such list, or one image with two labels.
    """
    flag, location = f"--labels {source}", storage.absolute(source)
    if not location.lower().endswith(LIST_EXTENSIONS):
        raise ConfigError(f"{flag}: expected a list, {' or '.join(LIST_EXTENSIONS)}, with the columns path and label")
    with refusing_unreadable("--labels", source, location):
        rows = read_list(flag, location, required=("path", "label"))
    labels: dict[str, str] = {}
    for path, label in zip(rows.cells("path"), rows.cells("label"), strict=True):
        if labels.setdefault(resolve_path(root, path), label) != label:
            raise ConfigError(
                f"{flag}: {path} has two labels, {labels[resolve_path(root, path)]} and {label}. Give one"
            )
    return labels


def correct_labels(manifest: Manifest, source: str) -> Manifest:
    """A copy with the labels of a list, and without the images that it drops; a note says how many.

    Raises:
        ConfigError: as `read_corrections`, or an image or a class that the manifest does not have.
    """
    labels, table = read_corrections(source, manifest.root), manifest.table.copy()
    known = set(table["path"])
    if missing := [path for path in labels if path not in known]:
        raise ConfigError(f"--labels {source}: not among the images: {format_examples(missing)}. Correct the paths")
    if unknown := sorted({*labels.values()} - {DROP, *manifest.class_names}):
        near = ", ".join(closest_names(unknown[0], manifest.class_names))
        raise ConfigError(f"--labels {source}: received {unknown[0]!r}, expected {DROP} or a class, such as {near}")
    given = table["path"].map(labels)
    usable = (table["status"] == OK) & given.notna()
    dropped = usable & (given == DROP) & (DROP not in manifest.class_names)
    changed = usable & ~dropped & (given != table["label"])
    table.loc[dropped, "status"] = f"{EXCLUDED}: dropped by --labels"
    table.loc[changed, "label"] = given[changed]
    names = tuple(sorted(set(table["label"][table["status"] == OK])))
    note = f"--labels: {format_count(int(changed.sum()), 'label')} corrected, {int(dropped.sum()):,} images dropped"
    return replace(manifest, table=table, class_names=names, notes=[*manifest.notes, note])
