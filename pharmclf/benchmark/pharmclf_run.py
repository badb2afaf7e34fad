"""What a run does in its own process beside the plain way, from its start to the written report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from pharmclf import pipeline, storage
from pharmclf.benchmark.timing import Stopwatch, throughput
from pharmclf.config import RunConfig
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.data.prepare import split_manifest
from pharmclf.distributed.controller import with_loader_cpus
from pharmclf.feature_cache.manager import get_or_compute
from pharmclf.feature_cache.shards import INDEX_FILE
from pharmclf.training.context import TrainingContext
from pharmclf.training.phases import Phase, build_phases
from pharmclf.training_run import build_training_context, feature_request

NAME = "ours"
_INPUT_EPOCHS = 1000  # more than are read; the stream must not come to its end
_TESTS = "testing the saved model"  # how the line begins that a run says when it has trained


def run_pharmclf(config: RunConfig, input_s: float, began: float) -> dict[str, Any]:
    """A run as jobs/train.py does it, in a storage of its own that holds nothing yet.

    Returns:
        As `keras_run.run_keras`, whole_s to the written report; kept_per_s: images/s of reading what is
        kept, by phase.
    """
    parts = Stopwatch(began)
    parts.end("start")

    def say(line: str) -> None:
        if line.startswith("data: "):
            parts.end("scan")
        elif line.startswith(_TESTS):
            parts.end("train")

    config = dataclasses.replace(config, name=NAME, workers="0")
    code = pipeline.run(config, say)
    parts.end("test")
    whole_s = time.time() - began
    if code:
        raise RuntimeError(f"the run ended with exit code {code}")
    folder = storage.join(storage.absolute(config.storage), NAME)
    result = storage.read_json(storage.join(folder, "result.json"))
    table = pd.read_parquet(f"{folder}/evaluation/test/predictions.parquet")
    phases = {
        each["name"]: {"seconds": each["seconds"], "epochs": each["epochs"]}
        | {"images_per_second": result["train_images"] * each["epochs"] / each["seconds"]}
        for each in result["phases"]
    }
    indexes = [storage.read_json(str(path)) for path in Path(config.storage).glob(f"activations/*/{INDEX_FILE}")]
    pass_s = max((index["seconds"] for index in indexes), default=0.0)  # one pass writes them all
    split = {"activations": pass_s} | {name: phase["seconds"] for name, phase in phases.items()}
    seconds = parts.seconds
    rest = seconds["train"] - sum(split.values())
    order = {"start": seconds["start"], "scan": seconds["scan"], "build": rest, **split, "test": seconds["test"]}
    return {
        "whole_s": whole_s, "parts_s": order, "phases": phases, **_our_input(config, folder, input_s),
        "hits": dict(zip(table["row"].tolist(), (table["label"] == table["predicted"]).tolist(), strict=True)),
    }  # fmt: skip


def _our_input(config: RunConfig, folder: str, input_s: float) -> dict[str, Any]:
    """Images/s of the stream with its augmentation, and of the kept activations of each phase."""
    manifest = split_manifest(config, folder)
    job = with_loader_cpus(build_training_context(config, folder, manifest))
    kept = get_or_compute(feature_request(job, manifest, 0, lambda _: None, lambda: False, lambda _: None))
    phases = build_phases(config)
    found = {name: _read(dataclasses.replace(job, activations={name: kept[name]}), phase, input_s)
             for phase in phases if (name := phase.name) in kept}  # fmt: skip
    return {"input_per_s": _read(job, phases[0], input_s), "kept_per_s": found}


def _read(job: TrainingContext, phase: Phase, input_s: float) -> float:
    """Images/s of a phase's input alone, training images only."""
    import tensorflow as tf

    from pharmclf.data.augment import apply_transforms
    from pharmclf.training.batch_loader import device_batches

    config = job.config
    plan = BatchPlan(
        job.train_rows, job.validation_rows[:0], config.batch_size, config.seed, phase.first_epoch, _INPUT_EPOCHS
    )

    @tf.function(autograph=False)
    def moved(images: Any, transforms: Any) -> Any:
        return apply_transforms(tf.cast(images, tf.float32), transforms, config.augment.fill)

    def sizes(batches: Any) -> Iterator[int]:
        for index in range(plan.num_steps):
            batch = next(batches)
            if phase.name not in job.activations:
                moved(batch.inputs, batch.transforms)[0, 0, 0].numpy()  # waits for the device
            yield plan.step(index).count

    batches = device_batches(job, phase, plan, 0)
    try:
        return throughput(sizes(batches), plan.train_steps, input_s)
    finally:
        batches.close()
