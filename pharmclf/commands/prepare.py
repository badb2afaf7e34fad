"""Examine a data set before training: the manifest, the splits, and the list of images that cannot be used.

pharmclf prepare --data DIR                          writes <storage>/<name>/manifest.parquet and quarantine.csv
pharmclf prepare --data DIR --max-invalid 1%         exit code 2 if more than 1 % of the images are invalid
pharmclf prepare --data DIR --precompute-features    also fills the feature cache that training would use
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pharmclf.commands.parser import RunParser, Switch
from pharmclf.core.console import print_line, show_loading
from pharmclf.progress import scan_progress

_MAX_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is done besides the manifest."""

    precompute_features: Switch = False
    """Compute the cached features that training would use."""


PARSER = RunParser("prepare", __doc__, Options(), preset="demo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the flags, prepare, and print a summary -> the exit code."""
    options, config = PARSER.parse(arguments)
    with show_loading():
        from pharmclf import storage
        from pharmclf.data.prepare import (
            MANIFEST_FILE,
            format_split_counts,
            split_counts,
            split_manifest,
            write_manifest,
        )
        from pharmclf.evaluation.label_alignment import adapt_to_model
        from pharmclf.runs.record import resolve_weights_path

    folder = storage.join(storage.absolute(config.storage), config.run_name)
    config = resolve_weights_path(config)
    manifest = adapt_to_model(config, split_manifest(config, folder, scan_progress()))
    write_manifest(manifest, folder)
    print("\n".join(format_split_counts(split_counts(manifest), storage.join(folder, MANIFEST_FILE))))
    invalid = manifest.quarantined
    for path, status in zip(invalid["path"].head(_MAX_LISTED), invalid["status"], strict=False):
        print(f"quarantined: {path}: {status}")
    if len(invalid) > _MAX_LISTED:
        print(f"quarantined: and {len(invalid) - _MAX_LISTED} more, see {storage.join(folder, 'quarantine.csv')}")
    for note in manifest.notes:
        print(f"note: {note}")
    print(f"{len(manifest.ok):,} usable images of {len(manifest.table):,}; written to {folder}", flush=True)
    if not options.precompute_features:
        return 0
    with show_loading():
        from pharmclf.training_run import precompute_features

    return precompute_features(config, folder, manifest, print_line)
