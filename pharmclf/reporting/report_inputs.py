"""What a report says of the data and of the machines."""

from __future__ import annotations

import platform

import psutil

from pharmclf.core.units import format_memory
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import split_counts
from pharmclf.data.ray_loader import load_images
from pharmclf.monitoring.cores import usable_cores
from pharmclf.reporting.report_data import DatasetReport, PredictedThumbnail

_GROUPS, _PER_GROUP, _QUARANTINED = 4, 4, 50
_SIDE = 128  # of the pictures of copies, pixels


def build_dataset_report(manifest: Manifest, *, has_splits: bool = True) -> DatasetReport:
    """What a report says of a data set.

    Args:
        manifest: of the data set.
        has_splits: whether it is the data of a run; if not, a model is tested on all of it, whatever a list says.
    """
    if not has_splits:
        manifest = manifest.with_splits(["test"] * len(manifest.ok))
    rows = manifest.ok
    sizes = rows["group"].value_counts()
    copies = sizes[sizes > 1]
    bad = manifest.quarantined
    return DatasetReport(
        counts=split_counts(manifest),
        quarantined=[(str(row.path), str(row.status)) for row in bad.head(_QUARANTINED).itertuples()],
        num_quarantined=len(bad),
        num_duplicate_groups=len(copies),
        num_duplicate_images=int(copies.sum()),
        num_torn_groups=int((rows.groupby("group")["split"].nunique() > 1).sum()),
        duplicate_groups=[_group_thumbnails(manifest, int(group)) for group in sorted(copies.index)[:_GROUPS]],
        notes=manifest.notes,
        has_splits=has_splits,
        white_level=manifest.white_level,
    )


def _group_thumbnails(manifest: Manifest, group: int) -> list[PredictedThumbnail]:
    """Some copies of one picture; `predicted` holds their split."""
    rows = manifest.ok[manifest.ok["group"] == group].head(_PER_GROUP)
    images, bad = load_images(ImageSet.of(manifest).select(rows.index), _SIDE)
    return [
        PredictedThumbnail(
            image=image,
            path=str(row.path),
            label=str(row.label),
            predicted=str(row.split),
            confidence=0.0,
            abstain=False,
            heatmap=None,
        )
        for image, reason, row in zip(images, bad, rows.itertuples(), strict=True)
        if not reason
    ]


def describe_machine(device: str, workers: int) -> list[tuple[str, str]]:
    """Devices, and the machine of the driver."""
    memory = format_memory(psutil.virtual_memory().total)
    return [
        ("device", device),
        ("workers", str(workers) if workers else "none; in one process"),
        ("driver", f"{platform.system()} {platform.machine()}, {usable_cores()} CPU cores, {memory}"),
    ]
