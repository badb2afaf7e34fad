"""Benchmark of an object store against local disk: the same images from both."""

from __future__ import annotations

import dataclasses
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from pharmclf import storage
from pharmclf.benchmark.measure import Report, peak_resident_bytes
from pharmclf.benchmark.stages import benchmark_job, loop_rate, stream_rate
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.errors import ConfigError
from pharmclf.data.prepare import cached_manifest, data_location
from pharmclf.training.phases import build_phases

_LOOP_STEPS = 8  # of an epoch of the loop; one of a large network on a CPU takes seconds


def benchmark_storage(config: RunConfig, say: Say) -> Report:
    """Measure the manifest, the stream and the loop on images on local disk and on the same images in the storage.

    The images are copied below the storage first, and deleted at the end.

    Args:
        config: `data` local, `storage` remote; backbone, batch size and image size.

    Returns:
        images, upload (a second), peak_mib (largest process of the scan), and rows for manifest, stream and loop:
        images/s from each place and `remote_share`, their ratio.

    Raises:
        ConfigError: the data are not local, or the storage is.
    """
    with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as folder:
        local = storage.absolute(data_location(dataclasses.replace(config, storage=folder)))
        if storage.is_remote(local) or not Path(local).is_dir() or not storage.is_remote(config.storage):
            raise ConfigError(
                f"--data {config.data} and --storage {config.storage}: expected a local folder of images, and an "
                "s3:// prefix to compare it with"
            )
        remote = storage.join(config.storage, f"benchmark-{Path(folder).name}")
        try:
            began = time.perf_counter()
            storage.upload_folder(Path(local), remote)
            seconds = time.perf_counter() - began
            config = dataclasses.replace(config, storage=folder)
            data = {"local": local, "remote": remote}
            images, peak_mib, scan = _scan_rates(data, folder)
            rates = {"list, read and examine all images": scan, **_training_rates(config, data, folder)}
        finally:
            storage.delete_folder(remote)
    rows = [{"what": what, **row, "remote_share": row["remote"] / row["local"]} for what, row in rates.items()]
    say(f"{images:,} images, copied at {images / seconds:.0f} a second")
    for row in rows:
        say(
            f"{row['what']:<34}  local {row['local']:7.1f}  remote {row['remote']:7.1f} images/s  "
            f"remote / local = {row['remote_share']:.2f}"
        )
    say(f"largest process of the scan: {peak_mib:.0f} MiB")
    return {"images": images, "upload": images / seconds, "peak_mib": peak_mib, "rows": rows}


def _scan_rates(data: Mapping[str, str], folder: str) -> tuple[int, float, dict[str, float]]:
    """Number of images, MiB of the largest process, and images/s by place; leaves the manifests in `folder`."""
    rates, num_images = {}, 0
    for place, location in data.items():
        began = time.perf_counter()
        num_images = len(cached_manifest(location, storage.join(folder, "manifests")).table)
        rates[place] = num_images / (time.perf_counter() - began)
    peak = max(map(peak_resident_bytes, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
    return num_images, peak / 2**20, rates


def _training_rates(config: RunConfig, data: Mapping[str, str], folder: str) -> dict[str, dict[str, float]]:
    """Images/s by place, of the stream and of the loop."""
    jobs = {
        place: benchmark_job(dataclasses.replace(config, data=location), storage.join(folder, place))
        for place, location in data.items()
    }
    phase, num_rows = build_phases(config)[0], _LOOP_STEPS * config.batch_size
    stream = {place: stream_rate(job, phase) for place, job in jobs.items()}
    loop = {}
    for place, job in jobs.items():
        few = job.train_rows[:num_rows], job.validation_rows[:num_rows]
        loop[place] = loop_rate(dataclasses.replace(job, train_rows=few[0], validation_rows=few[1]), phase)
    return {"stream": stream, f"training loop, {config.backbone}, {phase.name}": loop}
