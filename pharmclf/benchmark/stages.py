"""Benchmark of the stages of a run: decoding, the stream, the training step, the loop."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from pharmclf import storage
from pharmclf.benchmark.measure import Report, throughput
from pharmclf.config import PhaseConfig, RunConfig, StoppingConfig, refuse_auto
from pharmclf.core.console import Say
from pharmclf.core.errors import ConfigError
from pharmclf.core.events import EpochEnd, Event
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.data.ray_loader import load_batches, load_images
from pharmclf.distributed.cluster import connect
from pharmclf.distributed.controller import with_loader_cpus
from pharmclf.models.devices import configure_devices_for, device_name, gpu_compute_capability, resolve_precision
from pharmclf.training.context import TrainingContext
from pharmclf.training.phases import Phase, build_phases
from pharmclf.training_run import build_training_context

_LOOP_EPOCHS = 3  # of each phase; the first one traces the graphs and does not count
_PLANNED_EPOCHS = 60  # so many that the stream prefetches until it must wait, as in a run
_NUM_STEPS = 8
_STREAM_IMAGES = 3000  # the stream comes in blocks of some hundred rows


class _StopAfter:
    """Stops the run after the epochs that are measured."""

    def __init__(self) -> None:
        self.epochs = 0

    def on_event(self, event: Event, /) -> None:
        """Count the epochs."""
        self.epochs += isinstance(event, EpochEnd)

    def should_stop(self) -> bool:
        """Whether enough has been measured."""
        return self.epochs >= _LOOP_EPOCHS


def benchmark_stages(config: RunConfig, backbones: list[str], say: Say) -> Report:
    """Measure images/s of decoding, of the stream, of the training step on a batch in memory, and of the loop.

    Args:
        config: data, batch size, image size and unfreeze depth.
        backbones: networks that are measured, with random weights.

    Returns:
        rows: for each backbone and phase; `loop_share` is loop / min(stream, step).
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as folder:
        job = benchmark_job(config, folder)
        decode = _decode_rate(job)
        say(f"decode alone, one core: {decode:.0f} images/s")
        for backbone in backbones:
            backbone_config = dataclasses.replace(job.config, backbone=backbone)  # type: ignore[arg-type]
            backbone_folder = storage.join(folder, backbone)
            for row in _measure(dataclasses.replace(job, config=backbone_config, folder=backbone_folder)):
                rows.append({"decode": decode, **row})
                say(
                    f"{backbone:<20} {row['phase']}  stream {row['stream']:7.1f}  step {row['step']:7.1f}  loop "
                    f"{row['loop']:7.1f} images/s  loop / min(stream, step) = {row['loop_share']:.2f}"
                )
    return {"rows": rows, "batch_size": config.batch_size, "image_size": config.image_size}


def benchmark_job(config: RunConfig, folder: str) -> TrainingContext:
    """A job that trains in this process until it is stopped, on complete batches; connects Ray, configures the device.

    Raises:
        ConfigError: fewer training images than a batch, or `microbatch` auto.
    """
    refuse_auto(config.microbatch, "the benchmark")
    connect(allow_open=config.allow_unauthenticated_cluster)
    epochs = PhaseConfig(epochs=_PLANNED_EPOCHS, learning_rate=1e-5)
    never = StoppingConfig(early_patience=0, plateau_patience=0)
    config = dataclasses.replace(
        config, phase1=epochs, phase2=epochs, stopping=never, weights="none", num_workers="0", checkpoint_interval_s=0.0
    )
    job = with_loader_cpus(build_training_context(config, folder))
    num_rows = len(job.train_rows) - len(job.train_rows) % config.batch_size  # a padded batch would slow all stages
    if num_rows == 0:
        raise ConfigError(
            f"batch_size: received {config.batch_size}, but the training split has {len(job.train_rows)} images. "
            "Give a smaller batch or more images"
        )
    with suppress_native_stderr():
        configure_devices_for(config)
    return dataclasses.replace(job, train_rows=job.train_rows[:num_rows])


def _measure(job: TrainingContext) -> Iterator[dict[str, Any]]:
    for phase in build_phases(job.config):
        stream, step, loop = stream_rate(job, phase), _step_rate(job, phase), loop_rate(job, phase)
        yield {
            "backbone": job.config.backbone, "phase": phase.name, "device": device_name(),
            "stream": stream, "step": step, "loop": loop, "loop_share": loop / min(stream, step),
        }  # fmt: skip


def _decode_rate(job: TrainingContext) -> float:
    images = job.images.select(job.train_rows)
    began = time.perf_counter()
    load_images(images, job.config.image_size)
    return len(images) / (time.perf_counter() - began)


def _plan(job: TrainingContext, phase: Phase, epochs: int) -> BatchPlan:
    config = job.config
    return BatchPlan(job.train_rows, job.validation_rows, config.batch_size, config.seed, phase.first_epoch, epochs)


def stream_rate(job: TrainingContext, phase: Phase) -> float:
    """Images/s of the stream alone, from the second epoch on."""
    plan = _plan(job, phase, 1 + -(-_STREAM_IMAGES // len(job.train_rows)))
    batches = load_batches(plan, job.images, job.config.image_size, num_cpus=job.loader_cpus)
    return throughput((plan.step(index).count for index, _ in enumerate(batches)), plan.steps_per_epoch, math.inf)


def _step_rate(job: TrainingContext, phase: Phase) -> float:
    """Images/s of the training step on one batch on the device."""
    from pharmclf.benchmark.timed_step import build_step
    from pharmclf.training import collectives, model_step
    from pharmclf.training.batch_loader import device_batches

    workers = collectives.single_worker()
    precision = resolve_precision(job.config.precision, gpu_compute_capability())
    networks = model_step.build_networks(job, workers, precision)
    batches = device_batches(job, phase, _plan(job, phase, 1), 0)
    step = build_step(job, phase, workers, networks, precision, next(batches))
    batches.close()
    step()  # traces
    began = time.perf_counter()
    for _ in range(_NUM_STEPS):
        step()
    return _NUM_STEPS * job.config.batch_size / (time.perf_counter() - began)


def loop_rate(job: TrainingContext, phase: Phase) -> float:
    """Images/s of the training loop, the median of the epochs after the first."""
    from pharmclf.training import collectives, trainer

    other = "phase2" if phase.name == "phase1" else "phase1"
    alone = dataclasses.replace(job.config, **{other: PhaseConfig(epochs=0)})  # type: ignore[arg-type]
    job = dataclasses.replace(job, config=alone, folder=storage.join(job.folder, phase.name))
    history = trainer.Trainer(job, collectives.single_worker(), _StopAfter()).fit().history
    return float(np.median([record.images_per_second for record in history[1:]]))
