"""How much of the bare forward pass prediction at scale reaches: images in memory, in files, over Ray; in one run."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.data.image_set import ImageSet
from pharmclf.data.prepare import data_location
from pharmclf.distributed.cluster import connect
from pharmclf.evaluation.predict import BATCH, Predictor, PredictSpec, predict_stream
from pharmclf.inference.image_listing import list_images
from pharmclf.inference.output_table import TopKOutput
from pharmclf.inference.tolerant_reader import read_images
from pharmclf.models.devices import device_name
from pharmclf.monitoring.cores import usable_cores

_MEASURED_S = 30.0  # of each way
_FORWARD_BATCHES = 4  # of each time that the forward pass is measured, at least
_AHEAD_BYTES = 512 << 20  # Ray decodes so much before the first image is predicted; the pace counts from behind it
_NUM_CLASSES = 10


def benchmark_inference(config: RunConfig, say: Say) -> dict[str, Any]:
    """Measure images/s of the forward pass on images in memory, and of prediction from files here and on Ray.

    The forward pass is measured before and after each of them, on the same cores.

    Args:
        config: data, backbone, head and image size. The weights are random, which costs as much as trained ones.
        say: takes lines for the console.

    Returns:
        rows: `what`, `images_per_second`, the `forward` pass beside it, and `share`, their ratio.
    """
    with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as folder:
        images = list_images(data_location(dataclasses.replace(config, storage=folder)))
        what = PredictSpec(
            models=(_saved_model(config, folder),),
            image_size=config.image_size,
            read=read_images,
            columns=TopKOutput(labels=tuple(f"class {number}" for number in range(_NUM_CLASSES))),
        )
        connect(allow_open=config.allow_open_cluster)
        predictor = Predictor(what)
        batch = read_images(ImageSet.of_paths(images.paths[:BATCH]), config.image_size)["image"]
        rows = []
        before = _forward(predictor, batch)
        for name, actors in (("this process", 0), ("1 process on Ray", 1)):
            skipped = _AHEAD_BYTES // batch[0].nbytes if actors else 2 * usable_cores() * BATCH
            pace = _stream(dataclasses.replace(what, actors=actors), images.paths, skipped, int(before * _MEASURED_S))
            after = _forward(predictor, batch)
            forward = 2 / (1 / before + 1 / after)
            row = {"what": name, "images_per_second": pace, "forward": forward, "share": pace / forward}
            rows.append(row | {"backbone": config.backbone, "device": device_name()})
            say(_line(rows[-1]))
            before = after
    return {"rows": rows, "batch_size": BATCH, "image_size": config.image_size}


def _saved_model(config: RunConfig, folder: str) -> str:
    with suppress_native_stderr():
        from pharmclf.models.backbones import build_backbone
        from pharmclf.models.head import build_head, build_inference_model

        backbone = build_backbone(config.backbone, config.image_size, "none")
        head = build_head(config.head, backbone.output.shape[-1], _NUM_CLASSES, config.seed)
        location = storage.join(folder, "model.keras")
        build_inference_model(backbone, head).save(location)
    return location


def _forward(predictor: Predictor, batch: np.ndarray) -> float:
    """Images/s of the forward pass on images that lie in memory."""
    predictor.probabilities(batch)
    began, count = time.perf_counter(), 0
    while count < _FORWARD_BATCHES * BATCH or time.perf_counter() - began < _MEASURED_S / 3:
        count += len(predictor.probabilities(batch))
    return count / (time.perf_counter() - began)


def _stream(what: PredictSpec, paths: pa.Array, skipped: int, measured: int) -> float:
    """Images/s from files; the images are taken several times where there are few of them.

    Args:
        skipped: images before the pace is taken: what was decoded ahead while the process started came for nothing.
        measured: images behind them.
    """
    places = np.arange(skipped + measured) % len(paths)
    began, count, seen = 0.0, 0, 0
    for block in predict_stream(what, ImageSet.of_paths(paths).select(places)):
        seen += len(block["bad"])
        if began:
            count += len(block["bad"])
        elif seen >= skipped:
            began = time.perf_counter()
    return count / (time.perf_counter() - began)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['backbone']:<20} {row['what']:<17}  {row['images_per_second']:7.1f}  forward pass {row['forward']:7.1f} "
        f"images/s  share = {row['share']:.2f}"
    )
