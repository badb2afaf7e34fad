"""Benchmark of scaling: one and two workers are measured, a model is fitted and checked, and many GPUs are forecast."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from pharmclf import storage
from pharmclf.benchmark.measure import Report
from pharmclf.benchmark.scaling_model import (
    GPUS,
    BatchScaling,
    Compute,
    Link,
    PhaseFit,
    StepModel,
    compute_from_rate,
    fit_link,
    fit_phase,
    forecast,
    worst_error,
)
from pharmclf.benchmark.scaling_options import ScalingOptions, assumptions
from pharmclf.benchmark.stages import benchmark_job, stream_rate
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.errors import ConfigError
from pharmclf.core.tables import align_columns
from pharmclf.core.units import format_count
from pharmclf.distributed.scaling_policy import WorkerGroupSpec, resources_per_worker
from pharmclf.distributed.worker_group import build_trainer
from pharmclf.models.devices import configure_devices_for, with_precision
from pharmclf.models.precision import run_precision
from pharmclf.monitoring.cores import usable_cores
from pharmclf.reporting.benchmark_plots import scaling_figure
from pharmclf.reporting.figures import png_bytes
from pharmclf.training.context import TrainingContext
from pharmclf.training.phases import build_phases

if TYPE_CHECKING:  # imports TensorFlow
    from pharmclf.benchmark.scaling_worker import WorkerMeasurement

PLOT_FILE = "benchmark-scaling.png"
_MAX_SPREAD = 1.15  # above it the machine has other load
_BATCHES: dict[BatchScaling, str] = {"fixed": "the same global batch", "grown": "a global batch for each worker"}


def benchmark_scaling(config: RunConfig, options: ScalingOptions, say: Say) -> Report:
    """Measure one and two workers, fit the model, check it against the steps of two, and forecast.

    The plot is written below the storage.

    Args:
        config: data, backbone, batch and image size; `workers` does not count, `accelerator` cpu leaves GPUs unused.

    Returns:
        rows of the forecast; phases: fields of PhaseFit; link, stream, assumptions; holds: no step differs from the
        model by more than the tolerance.

    Raises:
        ConfigError: the batch is too small, or the number of GPU speeds is not that of the phases.
    """
    names = [phase.name for phase in build_phases(config)]
    given = _configured_compute(options, names, config.batch_size)
    sizes = _sizes(config.batch_size)
    with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as folder:
        job = benchmark_job(config, folder)
        say("measuring the stream")
        core_rate = stream_rate(job, build_phases(job.config)[0]) / job.loader_cpus
        say("measuring one worker and two: a few minutes on two cores")
        measured, world, place = _measure_workers(job, sizes)
    say(
        f"{config.backbone}, {config.image_size} px, batch {config.batch_size}; 1 and {world} workers on "
        f"{measured.device}, {place}"
    )
    say(f"stream: {core_rate:.0f} images/s a core")
    link = _fit_link(measured, world, say)
    fits = [fit_phase(name, measured.phases[name], config.batch_size, world, link) for name in names]
    for fit in fits:
        _say_phase(fit, config.batch_size, world, say)
    spread = max(fit.spread for fit in fits)
    if spread > _MAX_SPREAD:
        say(
            f"warning: half of the steps took {spread:.1f} times as long as the best one or longer: the machine has "
            "other load, and these figures are not reliable. Measure on a quiet one"
        )
    holds = _say_verdict([check.error for fit in fits for check in fit.checks], options.tolerance, say)
    stream = options.stream_cores * core_rate
    rows = _forecast_rows(fits, given, options, config.batch_size, stream)
    _say_forecast(rows, fits, config.batch_size, say)
    sentences = assumptions(options, config.batch_size, stream)
    say("assumed:")
    for sentence in sentences:
        say(f"  - {sentence}")
    plot = storage.join(storage.absolute(config.storage), PLOT_FILE)
    figure = scaling_figure(rows, {fit.phase: fit.bytes for fit in fits})
    storage.write_bytes(plot, png_bytes(figure))
    say(f"plot: {plot}")
    return {
        "backbone": config.backbone, "image_size": config.image_size, "batch_size": config.batch_size,
        "device": measured.device, "place": place, "workers": world, "stream_per_core": core_rate,
        "link": dataclasses.asdict(link) if link else None, "flat": measured.flat,
        "phases": [dataclasses.asdict(fit) for fit in fits], "rows": rows, "assumptions": sentences,
        "options": dataclasses.asdict(options), "holds": holds,
    }  # fmt: skip


def _configured_compute(options: ScalingOptions, phases: list[str], batch_size: int) -> list[Compute]:
    """Compute times of a GPU in each phase from the given speeds; empty without them.

    Raises:
        ConfigError: the number of speeds is not that of the phases, or one contradicts the fixed part.
    """
    rates = options.gpu_images_per_second
    if rates and len(rates) != len(phases):
        raise ConfigError(
            f"--gpu-images-per-second: received {len(rates)} speeds, expected one for each of {', '.join(phases)}"
        )
    return [compute_from_rate(rate, batch_size, options.gpu_fixed_ms / 1e3) for rate in rates]


def _sizes(batch_size: int) -> tuple[int, ...]:
    """Measured batches of one worker: that of the run, and parts of it.

    Raises:
        ConfigError: it has too few parts.
    """
    sizes = tuple(sorted({max(1, batch_size // part) for part in (8, 4, 2, 1)}))
    if len(sizes) < 3:
        raise ConfigError(f"batch_size: received {batch_size}, expected 4 or more, to measure parts of it too")
    return sizes


def _fit_link(measured: WorkerMeasurement, world: int, say: Say) -> Link | None:
    """The link between the workers; None for one worker."""
    points = [*measured.flat, *((phase.bytes, phase.bare) for phase in measured.phases.values() if phase.bare)]
    if not points:
        return None
    link = fit_link(points, world)
    error = worst_error(points, [link.ring_s(size, world) for size, _ in points])
    say(
        f"link between the workers: {8 * link.bytes_per_s / 1e9:.1f} Gbit/s, {1e6 * link.latency_s:.0f} us a "
        f"message (line within {error:.0%} of {len(points)} all-reduces)"
    )
    return link


def _forecast_rows(
    fits: Sequence[PhaseFit], given: Sequence[Compute], options: ScalingOptions, batch_size: int, stream: float
) -> list[dict[str, Any]]:
    """Fields of Forecast, with phase, batch and link_gbit."""
    rows = []
    for number, fit in enumerate(fits):
        for gbit in options.link_gbit:
            model = StepModel(given[number] if given else fit.compute, options.network(gbit), fit.bytes, stream)
            for batch in _BATCHES:
                for row in forecast(model, batch_size, batch):
                    rows.append({"phase": fit.phase, "batch": batch, "link_gbit": gbit, **dataclasses.asdict(row)})
    return rows


# ---------------------------------------------------------------------- measuring


def _measure_workers(job: TrainingContext, sizes: tuple[int, ...]) -> tuple[WorkerMeasurement, int, str]:
    """Start the workers, and let them measure -> times, number of workers, and where they ran."""
    total = ray.cluster_resources()
    gpus = 0.0 if job.config.accelerator == "cpu" else total.get("GPU", 0.0)
    world = min(2, int(gpus)) if gpus else 2
    each = resources_per_worker(world, world, total.get("CPU", 0.0), gpus)
    precision = run_precision(dataclasses.replace(job.config, num_workers=str(world)))  # one for all, as in a run
    job = dataclasses.replace(job, config=with_precision(job.config, precision), loader_cpus=each.loader_cpus)
    folder = tempfile.mkdtemp(prefix="pharmclf-ray-train-")
    settings = {"job": job, "sizes": sizes}
    # SPREAD: over the network, where there is one
    trainer = build_trainer(_worker, settings, WorkerGroupSpec(world, each), folder, placement="SPREAD")
    try:
        measured, place = trainer.fit().return_value
        return measured, world, place
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _worker(settings: dict[str, Any]) -> tuple[WorkerMeasurement, str]:
    """One Ray Train worker. (all ranks)"""
    job: TrainingContext = settings["job"]
    context = ray.train.get_context()
    workers_here = context.get_local_world_size()
    cores = _pin_to_cores(context.get_local_rank(), workers_here)
    configure_devices_for(job.config)
    from pharmclf.benchmark import scaling_worker
    from pharmclf.training import collectives

    measured = scaling_worker.measure(job, settings["sizes"], collectives.init_distributed(cores))
    nodes = "all on one node, whose memory they share" if workers_here > 1 else "a node for each"
    return measured, f"{format_count(cores, 'core')} each, {nodes}"


def _pin_to_cores(local_rank: int, workers_here: int) -> int:
    """Keep this process to its part of the node's cores, so that one worker is as fast as each of many.

    Returns:
        number of cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        return max(1, usable_cores() // workers_here)
    cores = sorted(os.sched_getaffinity(0))
    num_cores = max(1, len(cores) // workers_here)
    part = cores[local_rank * num_cores : (local_rank + 1) * num_cores] or cores
    for thread in Path("/proc/self/task").iterdir():  # later threads inherit it
        os.sched_setaffinity(int(thread.name), part)
    return len(part)


# ---------------------------------------------------------------------- lines for the console


def _say_phase(fit: PhaseFit, batch_size: int, world: int, say: Say) -> None:
    name, compute = fit.phase, fit.compute
    sizes = ", ".join(str(images) for images, _ in fit.alone)
    say(
        f"{name}: {fit.parameters:,} trained parameters; {fit.bytes / 1e6:.2f} MB to all-reduce a step. "
        f"Compute {1e3 * compute.fixed_s:.1f} ms + {1e3 * compute.image_s:.2f} ms an image "
        f"(line within {fit.compute_error:.0%} at {sizes} images)"
    )
    if fit.checks:
        say(
            f"{name}: all-reduce of the step's tensors by itself {1e3 * fit.bare:.1f} ms; concurrent workers take "
            f"{fit.slowdown:.2f} times as long as one alone"
        )
    for check in fit.checks:
        say(
            f"{name}: {world} workers, {_BATCHES[check.batch]} ({check.images} images each): step "
            f"{1e3 * check.step_s:.1f} ms, predicted {1e3 * check.predicted_s:.1f} ms (error {check.error:+.0%}); "
            f"efficiency {check.efficiency:.0%}, predicted {check.predicted_efficiency:.0%}"
        )
    for streamed in fit.streamed:
        say(
            f"{name}: {format_count(streamed.workers, 'worker')} on images from the stream: step "
            f"{1e3 * streamed.step_s:.1f} ms, of which {1e3 * streamed.wait_s:.1f} ms waiting for images; "
            f"{batch_size / streamed.step_s:.0f} images/s"
        )


def _say_verdict(errors: list[float], tolerance: float, say: Say) -> bool:
    """Say whether the model holds -> the same."""
    if not errors:
        say("check of the model: none, because there is one GPU; --accelerator cpu measures two workers on the cores")
        return True
    worst = max(errors, key=abs)
    holds = abs(worst) <= tolerance
    verdict = "holds" if holds else "does NOT hold"
    say(f"check of the model: largest error {worst:+.0%}, allowed {tolerance:.0%}: it {verdict} here")
    return holds


def _say_forecast(rows: list[dict[str, Any]], fits: Sequence[PhaseFit], batch_size: int, say: Say) -> None:
    titles = {
        "fixed": f"global batch {batch_size} shared by all, as in a run",
        "grown": f"{batch_size} images on each, a global batch that grows with them",
    }
    for fit in fits:
        for batch, title in titles.items():
            say(f"expected efficiency in %, {fit.phase}, {fit.bytes / 1e6:.1f} MB a step, {title}:")
            cells = {
                (row["link_gbit"], row["gpus"]): f"{100 * row['efficiency']:.0f}"
                for row in rows
                if row["phase"] == fit.phase and row["batch"] == batch
            }
            table = [["GPUs", *map(str, GPUS)]]
            for gbit in dict.fromkeys(gbit for gbit, _ in cells):
                table.append([f"{gbit:g} Gbit/s", *(cells.get((gbit, gpus), "-") for gpus in GPUS)])
            for line in align_columns(table, left=[]):
                say(line)
