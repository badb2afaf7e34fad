"""Look at a data set before training: the manifest, the splits, and the list of images that cannot be used.

python jobs/prepare.py --data DIR                  writes <storage>/<name>/manifest.parquet and quarantine.csv
python jobs/prepare.py --data DIR --max-bad 1%     exit code 2 where more than 1 % of the images are bad
python jobs/prepare.py --data DIR --activations    and compute the activations that training would keep, ahead of it
"""

from __future__ import annotations

from pathlib import Path

from pharmclf import storage
from pharmclf.cli import parse_config, run_job, scan_progress, take_bare_flag
from pharmclf.core.console import print_line
from pharmclf.data.prepare import MANIFEST_FILE, format_split_counts, prepare_manifest, split_counts

_SHOWN = 20


def main() -> int:
    """Parse, build the configuration, prepare, tell."""
    fill = take_bare_flag("--activations")
    config = parse_config(__doc__ or "", Path(__file__).parent / "configs" / "demo.yaml")
    folder = storage.join(storage.absolute(config.storage), config.run_name)
    manifest = prepare_manifest(config, folder, scan_progress(print))
    print("\n".join(format_split_counts(split_counts(manifest), storage.join(folder, MANIFEST_FILE))))
    bad = manifest.quarantined
    for path, status in zip(bad["path"].head(_SHOWN), bad["status"], strict=False):
        print(f"quarantined: {path}: {status}")
    if len(bad) > _SHOWN:
        print(f"quarantined: and {len(bad) - _SHOWN} more, see {storage.join(folder, 'quarantine.csv')}")
    for note in manifest.notes:
        print(f"note: {note}")
    print(f"{len(manifest.ok):,} usable images of {len(manifest.table):,}; written to {folder}", flush=True)
    if not fill:
        return 0
    from pharmclf.pipeline import precompute_features  # Ray is wanted here alone

    return precompute_features(config, folder, manifest, print_line)


if __name__ == "__main__":
    run_job(main)
