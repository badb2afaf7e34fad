"""What the plain way does in its own process, from its start to the tested model; Ray is never imported there."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pharmclf.benchmark.timing import Stopwatch, throughput
from pharmclf.config import RunConfig
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.models.devices import configure_devices


def run_keras(
    config: RunConfig, folder: str, num_classes: int, cached: bool, input_s: float, began: float
) -> dict[str, Any]:
    """The plain way.

    Args:
        config: the run.
        folder: class folders of the splits.
        num_classes: how many classes there are.
        cached: keep decoded images in memory.
        input_s: seconds that the input alone is measured.
        began: `time.time()` when this process was started.

    Returns:
        whole_s: from the start of the process to the tested and saved model; parts_s: where they went; phases:
        seconds, epochs and images/s of each; hits: row -> whether the model is right; input_per_s: images/s of reading
        and augmenting alone, behind the first epoch.
    """
    parts = Stopwatch(began)
    with suppress_native_stderr():
        from pharmclf.benchmark import keras_baseline

        configure_devices(deterministic=False, gpus=config.accelerator != "cpu")
        parts.end("start")
        place = Path(folder)
        data = keras_baseline.datasets(config, place, cached=cached)
        counts = [len(list(each.iterdir())) for each in sorted((place / "train").iterdir())]
        model = keras_baseline.build_baseline(config, num_classes)
        parts.end("build")
        phases = keras_baseline.train_baseline(model, config, data, np.array(counts))
        parts.end("train")
        tested = keras_baseline.predict_baseline(model, data, place)
        with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as own:
            keras_baseline.save_baseline(model, Path(own) / "model.keras")
        parts.end("test")
        whole_s = time.time() - began
        batches = (len(images) for images, _ in data["train"].repeat())
        rate = throughput(batches, -(-sum(counts) // config.batch_size), input_s)
    seconds = parts.seconds
    split = {name: phase["seconds"] for name, phase in phases.items()}
    seconds |= {"build": seconds["build"] + seconds.pop("train") - sum(split.values())}
    order = {"start": seconds["start"], "build": seconds["build"], **split, "test": seconds["test"]}
    return {"whole_s": whole_s, "parts_s": order, "phases": phases, "input_per_s": rate, **tested}
