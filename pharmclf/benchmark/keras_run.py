"""Plain Keras in the comparisons, in its process, from the start to the tested model; it never imports Ray."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from pharmclf.benchmark.measure import AccuracyPoint, SideResult, Stopwatch, throughput
from pharmclf.config import RunConfig
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.models.devices import configure_devices


def run_keras(
    config: RunConfig, folder: str, num_classes: int, cached: bool, input_s: float, began: float
) -> SideResult:
    """Train, test and save in plain Keras.

    Args:
        folder: class folders of the splits.
        began: `time.time()` at the start of this process.
    """
    watch, splits = Stopwatch(began), Path(folder)
    with suppress_native_stderr():
        from pharmclf.benchmark import keras_baseline

        configure_devices(deterministic=False, gpus=config.accelerator != "cpu")
        watch.end("start")
        data, counts = keras_baseline.datasets(config, splits, cached=cached), _count_images(splits)
        model = keras_baseline.build_baseline(config, num_classes)
        watch.end("build")
        phases = keras_baseline.train_baseline(model, config, data, counts)
        watch.end("train")
        hits = keras_baseline.predict_baseline(model, data, splits)
        with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as target:
            keras_baseline.save_baseline(model, Path(target) / "model.keras")
        watch.end("test")
        whole_s = time.time() - began
        batches = (len(images) for images, _ in data["train"].repeat())
        rate = throughput(batches, -(-int(counts.sum()) // config.batch_size), input_s)
    seconds, phases_s = watch.seconds, {name: phase.seconds for name, phase in phases.items()}
    build_s = seconds["build"] + seconds["train"] - sum(phases_s.values())
    parts_s = {"start": seconds["start"], "build": build_s, **phases_s, "test": seconds["test"]}
    return SideResult(whole_s=whole_s, parts_s=parts_s, phases=phases, hits=hits, input_per_s=rate)


def run_keras_points(config: RunConfig, folder: str, num_classes: int, began: float) -> list[AccuracyPoint]:
    """Train as `run_keras`, with decoded images kept in memory, and test after each epoch."""
    splits = Path(folder)
    with suppress_native_stderr():
        from pharmclf.benchmark import keras_baseline

        configure_devices(deterministic=False, gpus=config.accelerator != "cpu")
        data = keras_baseline.datasets(config, splits, cached=True)
        recorder = keras_baseline.AccuracyRecorder(data, splits, began)
        model = keras_baseline.build_baseline(config, num_classes)
        keras_baseline.train_baseline(model, config, data, _count_images(splits), [recorder])
    return recorder.points


def _count_images(splits: Path) -> np.ndarray:
    """Training images of each class."""
    return np.array([len(list(folder.iterdir())) for folder in sorted((splits / "train").iterdir())])
