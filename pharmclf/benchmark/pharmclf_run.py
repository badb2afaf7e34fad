"""Runs of this package in the benchmarks, and its side in the comparison with plain Keras."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from pharmclf import pipeline, storage
from pharmclf.benchmark.measure import PhaseTime, SideResult, Stopwatch, throughput
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.errors import RunError
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.data.prepare import data_location, split_manifest
from pharmclf.distributed.controller import with_loader_cpus
from pharmclf.feature_cache.manager import get_or_compute
from pharmclf.feature_cache.shards import INDEX_FILE
from pharmclf.training.context import TrainingContext
from pharmclf.training.phases import Phase, build_phases
from pharmclf.training_run import build_training_context, feature_request

NAME = "ours"
_INPUT_EPOCHS = 1000  # more than are read: the stream must not end
_TESTS = "testing the saved model"  # the start of the line that a run says after its training


@contextlib.contextmanager
def local_runs(config: RunConfig) -> Iterator[RunConfig]:
    """The configuration of runs on its images in a temporary storage, which is deleted after the block."""
    with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as folder:
        data = storage.absolute(data_location(dataclasses.replace(config, storage=folder)))
        yield dataclasses.replace(config, data=data, storage=folder)


def run_to_end(config: RunConfig, say: Say = lambda _: None) -> str:
    """Train, test and report as `pharmclf train` does -> the folder of the run.

    Raises:
        RunError: it ended with another exit code than 0.
    """
    if code := pipeline.run(config, say):
        raise RunError(f"the run ended with exit code {code}")
    return storage.join(storage.absolute(config.storage), config.run_name)


def run_pharmclf(config: RunConfig, input_s: float, began: float) -> SideResult:
    """Train, test and report as `pharmclf train` does, in a storage that is empty.

    Args:
        began: `time.time()` at the start of this process.
    """
    watch = Stopwatch(began)
    watch.end("start")

    def say(line: str) -> None:
        if line.startswith("data: "):
            watch.end("scan")
        elif line.startswith(_TESTS):
            watch.end("train")

    config = dataclasses.replace(config, name=NAME, num_workers="0")
    folder = run_to_end(config, say)
    watch.end("test")
    whole_s = time.time() - began
    result = storage.read_json(storage.join(folder, "result.json"))
    phases = {
        each["name"]: PhaseTime(
            seconds=each["seconds"], epochs=each["epochs"],
            images_per_second=result["train_images"] * each["epochs"] / each["seconds"],
        )
        for each in result["phases"]
    }  # fmt: skip
    phases_s = {"activations": feature_pass_s(config.storage)} | {name: each.seconds for name, each in phases.items()}
    seconds = watch.seconds
    build_s = seconds["train"] - sum(phases_s.values())
    parts_s = {name: seconds[name] for name in ("start", "scan")} | {"build": build_s} | phases_s
    parts_s["test"] = seconds["test"]
    table = pd.read_parquet(f"{folder}/evaluation/test/predictions.parquet")
    input_per_s, kept_per_s = _measure_inputs(config, folder, input_s)
    return SideResult(
        whole_s=whole_s,
        parts_s=parts_s,
        phases=phases,
        hits=dict(zip(table["row"].tolist(), (table["label"] == table["predicted"]).tolist(), strict=True)),
        input_per_s=input_per_s,
        kept_per_s=kept_per_s,
    )


def feature_pass_s(location: str, before: Collection[str] = ()) -> float:
    """Seconds of the pass that computed the feature cache below a local storage; 0 without one."""
    indexes = [storage.read_json(path) for path in feature_indexes(location) if path not in before]
    return max((float(index["seconds"]) for index in indexes), default=0.0)  # one pass writes them all


def feature_indexes(location: str) -> list[str]:
    """Index files of the feature cache below a local storage."""
    return [str(path) for path in Path(location).glob(f"activations/*/{INDEX_FILE}")]


def _measure_inputs(config: RunConfig, folder: str, input_s: float) -> tuple[float, dict[str, float]]:
    """Images/s of the stream with its augmentation, and of the feature cache of each phase."""
    manifest = split_manifest(config, folder)
    job = with_loader_cpus(build_training_context(config, folder, manifest))
    kept = get_or_compute(feature_request(job, manifest, 0, lambda _: None, lambda: False, lambda _: None))
    phases = build_phases(config)
    kept_per_s = {
        name: _input_rate(dataclasses.replace(job, activations={name: kept[name]}), phase, input_s)
        for phase in phases
        if (name := phase.name) in kept
    }
    return _input_rate(job, phases[0], input_s), kept_per_s


def _input_rate(job: TrainingContext, phase: Phase, input_s: float) -> float:
    """Images/s of a phase's input alone, training images only."""
    import tensorflow as tf

    from pharmclf.data.augment import augment_images
    from pharmclf.training.batch_loader import device_batches

    config = job.config
    plan = BatchPlan(
        job.train_rows, job.validation_rows[:0], config.batch_size, config.seed, phase.first_epoch, _INPUT_EPOCHS
    )

    def apply(images: Any, transforms: Any) -> Any:
        return augment_images(tf.cast(images, tf.float32), transforms, config.augment, config.seed)

    augment = tf.function(apply, autograph=False)

    def sizes(batches: Any) -> Iterator[int]:
        for index in range(plan.num_steps):
            batch = next(batches)
            if phase.name not in job.activations:
                augment(batch.inputs, batch.transforms)[0, 0, 0].numpy()  # waits for the device
            yield plan.step(index).count

    batches = device_batches(job, phase, plan, 0)
    try:
        return throughput(sizes(batches), plan.train_steps, input_s)
    finally:
        batches.close()
