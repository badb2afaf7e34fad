"""Benchmark of the image stream: large steps, a large data set, and large photos with the image cache.

Where the scheduling of Ray is measured, a decoder that sleeps takes the place of the processor, so that a few cores
show what many do.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
from PIL import Image

from pharmclf.benchmark.measure import Report
from pharmclf.config import RunConfig
from pharmclf.core.console import Say, show_activity
from pharmclf.core.hashing import sha256_file
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.data.decoded_image import Pixels
from pharmclf.data.image_cache import ImageCache
from pharmclf.data.image_set import ImageSet
from pharmclf.data.pixel_depth import MAX_VALUE
from pharmclf.data.ray_loader import load_batches, load_images

_LOGICAL_CPUS = 16
_SLEEP_S = 0.04  # of one image; a shorter one would measure the processor
_STEPS = ((256, 384), (512, 224), (1024, 224))  # images, side in pixels
_FEW, _MANY = 2000, 5_000_000
_SETTLE_S, _SECONDS = 20.0, 40.0  # what waited behind the start of a slow process comes in one burst
_PHOTOS, _PHOTO_SIZE, _PHOTO_EPOCHS = 48, (4000, 3000), 5


class _SleepingImages(ImageSet):
    """Images that are not there, and take their time."""

    def decode(self, place: int, image_size: int) -> Pixels:
        time.sleep(_SLEEP_S)
        return np.full((image_size, image_size, 3), place % 256, np.uint8)

    @staticmethod
    def make(count: int) -> _SleepingImages:
        """Some of them, with paths of usual length."""
        columns = pa.repeat("/data/photos/class/" + 20 * "x" + ".jpg", count), pa.repeat(64 * "0", count)
        return _SleepingImages(*columns, pa.repeat(MAX_VALUE, count))


def benchmark_stream(config: RunConfig, say: Say) -> Report:
    """Measure the image stream, as ratios within this run.

    Args:
        config: the image size of the photos.

    Returns:
        rows: `what`, `images_per_second`, `reference` and `ratio` of each measurement: steps of several sizes against
        all CPUs times one, 5 million rows against 2,000, and the first epoch of photos of 12 megapixels against the
        later ones with the image cache.
    """
    settings = {"address": "local", "include_dashboard": False, "log_to_driver": False}
    ray.init(num_cpus=_LOGICAL_CPUS, logging_level=logging.ERROR, **settings)
    rows = []

    def add(what: str, rate: float, reference: float, meaning: str) -> None:
        rows.append({"what": what, "images_per_second": rate, "reference": reference, "ratio": rate / reference})
        say(f"{what:<40} {rate:8.1f} images/s  {meaning} {reference:8.1f}  ratio {rate / reference:.2f}")

    began = time.perf_counter()
    load_images(_SleepingImages.make(_LOGICAL_CPUS), 224)
    single = _LOGICAL_CPUS / (time.perf_counter() - began)
    try:
        _start_processes()
        for batch, side in _STEPS:
            rate = _steady_rate(_FEW, batch, side)
            add(f"steps of {batch} images of {side} px", rate, _LOGICAL_CPUS * single, f"{_LOGICAL_CPUS} CPUs x one")
        add(f"{_MANY:,} rows", _steady_rate(_MANY, 256, 224), _steady_rate(_FEW, 256, 224), f"{_FEW:,} rows")
        with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as folder:
            first, later = _photo_rates(Path(folder), config.image_size)
        add("photos of 12 MP, cached", later, first, "first epoch")
    finally:
        ray.shutdown()
    return {"rows": rows, "logical_cpus": _LOGICAL_CPUS, "single": single}


def _start_processes() -> None:
    """Start the processes of all CPUs: on two cores they take minutes, which would count against the first stream."""

    def start(number: int) -> None:
        (folder / str(number)).touch()
        while sum(1 for _ in folder.iterdir()) < _LOGICAL_CPUS:  # or a process that ends early would take two
            time.sleep(0.1)

    with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as name, show_activity("starting Ray's processes"):
        folder = Path(name)
        ray.get([ray.remote(num_cpus=1)(start).remote(number) for number in range(_LOGICAL_CPUS)])


def _steady_rate(num_rows: int, batch: int, side: int) -> float:
    """Images/s of sleeping images, once the stream runs."""
    plan = BatchPlan(np.arange(num_rows), np.arange(0), batch, 0, 0, -(-1_000_000 // num_rows))
    images, began, settled = 0, 0.0, 0.0
    for pixels, _ in load_batches(plan, _SleepingImages.make(num_rows), side, num_cpus=_LOGICAL_CPUS):
        now = time.perf_counter()
        settled = settled or now + _SETTLE_S
        if began:
            images += len(pixels)
            if now - began >= _SECONDS:
                break
        elif now >= settled:
            began = now
    return images / (now - began)


def _photo_rates(folder: Path, side: int) -> tuple[float, float]:
    """Images/s of one process that reads photos with the image cache: in the first epoch, and in the later ones."""
    paths = list(_draw_photos(folder))
    files = ImageSet.of_paths(paths)
    files = ImageSet(files.paths, pa.array(map(sha256_file, paths)), files.white_level)
    cache = ImageCache(folder / "cache", 1e9)
    began = time.perf_counter()
    load_images(files, side, cache)
    first = len(paths) / (time.perf_counter() - began)
    began = time.perf_counter()
    for _ in range(_PHOTO_EPOCHS):
        load_images(files, side, cache)
    return first, _PHOTO_EPOCHS * len(paths) / (time.perf_counter() - began)


def _draw_photos(folder: Path) -> Iterator[str]:
    random = np.random.default_rng(0)
    for number in range(_PHOTOS):
        rough = Image.fromarray(random.integers(0, 256, (300, 400, 3), dtype=np.uint8))
        path = folder / f"{number}.jpg"
        rough.resize(_PHOTO_SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
        yield str(path)
