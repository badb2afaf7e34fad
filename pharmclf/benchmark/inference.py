"""Benchmark of prediction from files, here and on Ray, as a share of the forward pass on images in memory."""

from __future__ import annotations

import dataclasses
import tempfile
import time

import numpy as np
import pyarrow as pa

from pharmclf import storage
from pharmclf.benchmark.measure import Report
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.data.image_set import ImageSet
from pharmclf.data.prepare import data_location
from pharmclf.distributed.cluster import connect
from pharmclf.evaluation.predict import predict_stream
from pharmclf.evaluation.predictor import BATCH, Predictor, PredictSpec
from pharmclf.inference.image_listing import list_images
from pharmclf.inference.output_table import TopKOutput
from pharmclf.inference.tolerant_reader import read_images
from pharmclf.models.devices import configure_devices, device_name
from pharmclf.monitoring.cores import usable_cores

_MEASURED_S = 30.0  # of each measurement
_MIN_FORWARD_BATCHES = 4
_AHEAD_BYTES = 512 << 20  # Ray decodes so much before the first image is predicted; only later images count
NUM_CLASSES = 10
"""Outputs of the model that is measured."""


def benchmark_inference(config: RunConfig, say: Say) -> Report:
    """Measure images/s of prediction, and of the forward pass before and after it on the same cores.

    Args:
        config: data, backbone, head and image size. The weights are random.

    Returns:
        rows: `what`, `images_per_second`, those of the `forward` pass, and `share`, their ratio.
    """
    with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as folder:
        images = list_images(data_location(dataclasses.replace(config, storage=folder)))
        spec = PredictSpec(
            models=(save_random_model(config, folder),),
            image_size=config.image_size,
            read=read_images,
            columns=TopKOutput(labels=tuple(f"class {number}" for number in range(NUM_CLASSES))),
        )
        connect(allow_open=config.allow_unauthenticated_cluster)
        predictor = Predictor(spec)
        batch = read_images(ImageSet.of_paths(images.paths[:BATCH]), config.image_size)["image"]
        rows = []
        before = forward_rate(predictor, batch)
        for name, actors in (("this process", 0), ("1 process on Ray", 1)):
            skipped = _AHEAD_BYTES // batch[0].nbytes if actors else 2 * usable_cores() * BATCH
            rate = _stream_rate(
                dataclasses.replace(spec, actors=actors), images.paths, skipped, int(before * _MEASURED_S)
            )
            after = forward_rate(predictor, batch)
            forward = 2 / (1 / before + 1 / after)
            row = {"what": name, "images_per_second": rate, "forward": forward, "share": rate / forward}
            rows.append(row | {"backbone": config.backbone, "device": device_name()})
            say(
                f"{config.backbone:<20} {name:<17}  {rate:7.1f}  forward pass {forward:7.1f} images/s  "
                f"share = {rate / forward:.2f}"
            )
            before = after
    return {"rows": rows, "batch_size": BATCH, "image_size": config.image_size}


def save_random_model(config: RunConfig, folder: str) -> str:
    """Save the model of a configuration with random weights -> its location."""
    with suppress_native_stderr():
        from pharmclf.models.backbones import build_backbone
        from pharmclf.models.head import build_head, build_inference_model

        configure_devices(deterministic=False)
        backbone = build_backbone(config.backbone, config.image_size, "none")
        head = build_head(config.head, backbone.output.shape[-1], NUM_CLASSES, config.seed)
        location = storage.join(folder, "model.keras")
        build_inference_model(backbone, head).save(location)
    return location


def forward_rate(predictor: Predictor, batch: np.ndarray) -> float:
    """Images/s of the forward pass on images in memory."""
    predictor.predict(batch)
    began, count = time.perf_counter(), 0
    while count < _MIN_FORWARD_BATCHES * BATCH or time.perf_counter() - began < _MEASURED_S / 3:
        count += len(predictor.predict(batch)[0])
    return count / (time.perf_counter() - began)


def _stream_rate(spec: PredictSpec, paths: pa.Array, skipped: int, measured: int) -> float:
    """Images/s from files; few images are repeated.

    Args:
        skipped: images at the start that do not count: they were decoded while the process started.
        measured: images after them.
    """
    places = np.arange(skipped + measured) % len(paths)
    began, count, seen = 0.0, 0, 0
    for block in predict_stream(spec, ImageSet.of_paths(paths).select(places)):
        seen += len(block["bad"])
        if began:
            count += len(block["bad"])
        elif seen >= skipped:
            began = time.perf_counter()
    return count / (time.perf_counter() - began)
