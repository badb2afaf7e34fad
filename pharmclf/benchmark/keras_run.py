"""The plain Keras side of the comparison, in its process, from the start to the tested model; it never imports Ray."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from pharmclf.benchmark.measure import SideResult, Stopwatch, throughput
from pharmclf.config import RunConfig
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.models.devices import configure_devices


def run_keras(
    config: RunConfig, folder: str, num_classes: int, cached: bool, input_s: float, began: float
) -> SideResult:
    """Train, test and save in plain Keras.

    Args:
        config: the run.
        folder: class folders of the splits.
        num_classes: number of classes.
        cached: keep decoded images in memory.
        input_s: seconds of measuring the input alone.
        began: `time.time()` at the start of this process.
    """
    watch = Stopwatch(began)
    with suppress_native_stderr():
        from pharmclf.benchmark import keras_baseline

        configure_devices(deterministic=False, gpus=config.accelerator != "cpu")
        watch.end("start")
        splits = Path(folder)
        data = keras_baseline.datasets(config, splits, cached=cached)
        counts = [len(list(each.iterdir())) for each in sorted((splits / "train").iterdir())]
        model = keras_baseline.build_baseline(config, num_classes)
        watch.end("build")
        phases = keras_baseline.train_baseline(model, config, data, np.array(counts))
        watch.end("train")
        hits = keras_baseline.predict_baseline(model, data, splits)
        with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as target:
            keras_baseline.save_baseline(model, Path(target) / "model.keras")
        watch.end("test")
        whole_s = time.time() - began
        batches = (len(images) for images, _ in data["train"].repeat())
        rate = throughput(batches, -(-sum(counts) // config.batch_size), input_s)
    seconds, phases_s = watch.seconds, {name: phase.seconds for name, phase in phases.items()}
    build_s = seconds["build"] + seconds["train"] - sum(phases_s.values())
    parts_s = {"start": seconds["start"], "build": build_s, **phases_s, "test": seconds["test"]}
    return SideResult(whole_s=whole_s, parts_s=parts_s, phases=phases, hits=hits, input_per_s=rate)
