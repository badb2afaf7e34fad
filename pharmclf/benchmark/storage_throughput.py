"""What an object store costs against local disk: the same images from both, measured in one run."""

from __future__ import annotations

import dataclasses
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from pharmclf import storage
from pharmclf.benchmark.stages import benchmark_job, loop_rate, stream_rate
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.errors import ConfigError
from pharmclf.data.prepare import cached_manifest, data_location
from pharmclf.training.phases import build_phases

_PLACES = ("local", "remote")
_LOOP_STEPS = 8  # of an epoch of the loop; one of a large network on a CPU takes seconds


def benchmark_storage(config: RunConfig, say: Say) -> dict[str, Any]:
    """Measure the manifest, the stream and the loop on images on local disk and on the same images in the storage.

    The images are copied below the storage first, and deleted at the end.

    Args:
        config: `data` local, `storage` remote; backbone, batch size and image size of the loop.
        say: takes lines for the console.

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
            data = {"local": local, "remote": remote}
            rows = [_manifest(data, folder), *_training(dataclasses.replace(config, storage=folder), data, folder)]
        finally:
            storage.delete_folder(remote)
    images, peak = rows[0].pop("images"), rows[0].pop("peak_mib")
    say(f"{images:,} images, copied to {config.storage} at {images / seconds:.0f} a second")
    for row in rows:
        row["remote_share"] = row["remote"] / row["local"]
        say(
            f"{row['what']:<34}  local {row['local']:7.1f}  remote {row['remote']:7.1f} images/s  "
            f"remote / local = {row['remote_share']:.2f}"
        )
    say(f"largest process while the images were examined: {peak:.0f} MiB")
    return {"images": images, "upload": images / seconds, "peak_mib": peak, "rows": rows}


def _manifest(data: dict[str, str], folder: str) -> dict[str, Any]:
    """The scan of both; the training of the same run finds the manifests in `folder`."""
    row: dict[str, Any] = {"what": "list, read and examine all images"}
    for place in _PLACES:
        began = time.perf_counter()
        manifest = cached_manifest(data[place], storage.join(folder, "manifests"))
        row[place] = len(manifest.table) / (time.perf_counter() - began)
        row["images"] = len(manifest.table)
        processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        row["peak_mib"] = max(resource.getrusage(which).ru_maxrss for which in processes) / 1024
    return row


def _training(config: RunConfig, data: dict[str, str], folder: str) -> list[dict[str, Any]]:
    jobs = {}
    for place in _PLACES:
        jobs[place] = benchmark_job(dataclasses.replace(config, data=data[place]), storage.join(folder, place))
    first = build_phases(jobs["local"].config)[0]
    stream: dict[str, Any] = {"what": "stream"}
    loop: dict[str, Any] = {"what": f"training loop, {config.backbone}, {first.name}"}
    for place in _PLACES:
        stream[place] = stream_rate(jobs[place], first)
    for place in _PLACES:
        few = _LOOP_STEPS * config.batch_size
        job = jobs[place]
        short = dataclasses.replace(job, train_rows=job.train_rows[:few], validation_rows=job.validation_rows[:few])
        loop[place] = loop_rate(short, first)
    return [stream, loop]
