"""Benchmark of the server of predictions under load, as a share of the forward pass on images in memory."""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import ray
from ray import serve

from pharmclf import storage
from pharmclf.benchmark.inference import NUM_CLASSES, forward_rate, save_random_model
from pharmclf.benchmark.measure import Report
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.errors import RunError
from pharmclf.data.image_set import ImageSet
from pharmclf.data.prepare import data_location
from pharmclf.distributed.cluster import connect
from pharmclf.evaluation.predictor import BATCH, Predictor, PredictSpec
from pharmclf.inference.image_listing import list_images
from pharmclf.inference.tolerant_reader import read_images
from pharmclf.models.devices import device_name
from pharmclf.serving.options import ServeOptions
from pharmclf.serving.server import APPLICATION, start

_LOADS = ((1, 1), (16, 1), (64, 1), (4, 32))  # clients, and images of a request of each
_MEASURED_S = 20.0
_EXPORT_S = 12.0  # until Ray has exported the batches
_PORT = 8127
_FILES = 256  # that clients send in turn


def benchmark_serving(config: RunConfig, say: Say) -> Report:
    """Measure requests/s and latency for some numbers of clients, and the forward pass before and after each.

    Args:
        config: data, backbone, head and image size. The weights are random.

    Returns:
        rows: `clients`, `images` of a request, `requests_per_second`, `p50_ms` and `p99_ms` of a request, `batch`, the
        mean number of images of a forward pass, `images_per_second`, those of the bare `forward` pass, and `share`.
    """
    with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as folder:
        paths = list_images(data_location(dataclasses.replace(config, storage=folder))).paths
        model = save_random_model(config, folder)
        storage.write_json(storage.join(folder, "labels.json"), [f"class {number}" for number in range(NUM_CLASSES)])
        spec = PredictSpec(models=(model,), image_size=config.image_size)
        pixels = read_images(ImageSet.of_paths(paths[:BATCH]), config.image_size)["image"]
        contents = [Path(path).read_bytes() for path in paths[:_FILES].to_pylist()]
        connect(allow_open=config.allow_unauthenticated_cluster)
        # in a process of Ray too, which gives all of them a low priority
        bare = ray.remote(num_cpus=0)(_Forward).remote(spec, pixels)
        start(ServeOptions(model=(model,), port=_PORT, replicas="1", no_token=True), "")
        rows = []
        try:
            before = ray.get(bare.rate.remote())
            for clients, images in _LOADS:
                row = _load(contents, clients, images)
                after = ray.get(bare.rate.remote())
                row["forward"] = 2 / (1 / before + 1 / after)
                row["share"] = row["images_per_second"] / row["forward"]
                rows.append(row | {"backbone": config.backbone, "device": device_name()})
                say(
                    f"{clients:3} clients, {images:2} images each  {row['requests_per_second']:6.1f} requests/s  "
                    f"p50 {row['p50_ms']:5.0f} ms  p99 {row['p99_ms']:5.0f} ms  batch {row['batch']:4.1f}  "
                    f"{row['images_per_second']:6.1f} of {row['forward']:6.1f} images/s  share = {row['share']:.2f}"
                )
                before = after
        finally:
            serve.delete(APPLICATION)
    return {"rows": rows, "image_size": config.image_size}


def _load(contents: Sequence[bytes], clients: int, images: int) -> dict[str, float]:
    _Client(contents, images).run(time.perf_counter() + _MEASURED_S / 10)
    first = _batches()
    workers = [_Client(contents, images) for _ in range(clients)]
    began = time.perf_counter()
    threads = [threading.Thread(target=worker.run, args=(began + _MEASURED_S,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    taken = np.array([seconds for worker in workers for seconds in worker.seconds])
    last = _batches()
    return {
        "clients": clients,
        "images": images,
        "requests_per_second": len(taken) / elapsed,
        "images_per_second": images * len(taken) / elapsed,
        "p50_ms": 1000 * float(np.percentile(taken, 50)),
        "p99_ms": 1000 * float(np.percentile(taken, 99)),
        "batch": (last[0] - first[0]) / max(1.0, last[1] - first[1]),
    }


class _Forward:
    """The bare forward pass."""

    def __init__(self, spec: PredictSpec, pixels: np.ndarray) -> None:
        self._predictor, self._pixels = Predictor(spec), pixels

    def rate(self) -> float:
        return forward_rate(self._predictor, self._pixels)


class _Client:
    """Sends one request after the other over one connection."""

    _place = count()

    def __init__(self, contents: Sequence[bytes], images: int) -> None:
        self._contents, self._images = contents, images
        self.seconds: list[float] = []

    def run(self, until: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", _PORT)
        while time.perf_counter() < until:
            body, kind = self._body()
            began = time.perf_counter()
            connection.request("POST", "/predict", body, {"Content-Type": kind})
            response = connection.getresponse()
            answer = response.read()
            if response.status != http.client.OK:
                raise RunError(f"serve: received {response.status} {json.loads(answer)}, expected an answer")
            self.seconds.append(time.perf_counter() - began)
        connection.close()

    def _body(self) -> tuple[bytes, str]:
        files = [self._contents[next(self._place) % len(self._contents)] for _ in range(self._images)]
        if len(files) == 1:
            return files[0], "image/jpeg"
        head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        return b"\r\n".join([head + file for file in files] + [b"--B--\r\n"]), "multipart/form-data; boundary=B"


def _batches() -> tuple[float, float]:
    """Images, and batches of them, so far."""
    time.sleep(_EXPORT_S)
    connection = http.client.HTTPConnection("127.0.0.1", _PORT)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    found = (re.findall(rf"ray_pharmclf_serve_{name}(?:_total)?{{.*}} (\S+)", text) for name in ("answers", "batches"))
    images, passes = (sum(map(float, values)) for values in found)
    return images, passes
