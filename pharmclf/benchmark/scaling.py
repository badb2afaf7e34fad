"""How training scales: one and two workers measured here, a model of the parts, and what it says of many GPUs."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train

from pharmclf import storage
from pharmclf.benchmark.scaling_model import (
    GPUS,
    BatchScaling,
    Compute,
    ScalingOptions,
    StepModel,
    assumptions,
    compute_from_rate,
    fit_link,
    fit_phase,
    forecast,
    worst_error,
)
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
from pharmclf.reporting.scaling_plots import scaling_png
from pharmclf.training.context import TrainingContext
from pharmclf.training.phases import build_phases

PLOT_FILE = "benchmark-scaling.png"
_ROUNDS = 9
_STEPS = 2
_STREAMED_STEPS = 8
_MAX_SPREAD = 1.15  # above it the machine does other things meanwhile
_BATCHES: dict[BatchScaling, str] = {"fixed": "the same global batch", "grown": "a global batch for each worker"}


def benchmark_scaling(config: RunConfig, options: ScalingOptions, say: Say) -> dict[str, Any]:
    """Measure one and two workers in one run, fit the model, check it against the steps of two, and forecast.

    The picture is written below the storage.

    Args:
        config: data, backbone, batch and image size; `workers` counts for nothing, `accelerator` cpu leaves GPUs alone.
        options: of the forecast.
        say: takes lines for the console.

    Returns:
        rows of the forecast; phases: what was measured and fitted, with the check of the model; link, stream,
        assumptions; holds: no step differs from the model by more than the tolerance.

    Raises:
        ConfigError: too small a batch, or a number of GPU speeds that is not that of the phases.
    """
    names = [phase.name for phase in build_phases(config)]
    given = _configured_compute(options, names, config.batch_size)
    sizes = _sizes(config.batch_size)
    with tempfile.TemporaryDirectory(prefix="pharmclf-benchmark-") as folder:
        job = benchmark_job(config, folder)
        say("measuring the stream")
        core_rate = stream_rate(job, build_phases(job.config)[0]) / job.loader_cpus
        say("measuring one worker and two: a few minutes on two cores")
        measured = _measure(job, sizes)
    streamed = options.stream_cores * core_rate
    world = measured["workers"]
    say(
        f"{config.backbone}, {config.image_size} px, batch {config.batch_size}; 1 and {world} workers on "
        f"{measured['device']}, {measured['place']}"
    )
    say(f"stream: {core_rate:.0f} images/s a core")
    flat = measured["flat"] + [(each["bytes"], each["bare"]) for each in measured["phases"].values() if each["bare"]]
    link = fit_link(flat, world) if flat else None
    if link:
        off = worst_error(flat, [link.ring_s(size, world) for size, _ in flat])
        say(
            f"link between the workers: {8 * link.bytes_per_s / 1e9:.1f} Gbit/s, {1e6 * link.latency_s:.0f} us a "
            f"message (line within {off:.0%} of {len(flat)} all-reduces)"
        )
    rows: list[dict[str, Any]] = []
    phases: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        phase = {"phase": name} | fit_phase(measured["phases"][name], config.batch_size, world, link)
        phases.append(phase)
        _say_phase(phase, config.batch_size, world, say)
        compute = given[number] if given else Compute(**phase["compute"])
        for gbit in options.link_gbit:
            model = StepModel(compute, options.network(gbit), phase["bytes"], streamed)
            for batch in _BATCHES:
                about = {"phase": name, "batch": batch, "link_gbit": gbit}
                rows += [about | row for row in forecast(model, config.batch_size, batch)]
    spread = max(phase["spread"] for phase in phases)
    if spread > _MAX_SPREAD:
        say(
            f"warning: half of the steps took {spread:.1f} times as long as the best one or longer: the machine does "
            "other things meanwhile, and these figures say little. Measure on a quiet one"
        )
    holds = _say_verdict([check["error"] for phase in phases for check in phase["checks"]], options.tolerance, say)
    _say_forecast(rows, phases, config.batch_size, say)
    rests = assumptions(options, config.batch_size, streamed)
    say("assumed:")
    for sentence in rests:
        say(f"  - {sentence}")
    picture = storage.join(storage.absolute(config.storage), PLOT_FILE)
    storage.write_bytes(picture, scaling_png(rows, {phase["phase"]: phase["bytes"] for phase in phases}))
    say(f"picture: {picture}")
    return {
        "backbone": config.backbone, "image_size": config.image_size, "batch_size": config.batch_size,
        "device": measured["device"], "place": measured["place"], "workers": world, "stream_per_core": core_rate,
        "link": dataclasses.asdict(link) if link else None, "flat": measured["flat"], "phases": phases,
        "rows": rows, "assumptions": rests, "options": dataclasses.asdict(options), "holds": holds,
    }  # fmt: skip


def _configured_compute(options: ScalingOptions, phases: list[str], batch_size: int) -> list[Compute]:
    """How a GPU computes in each phase, where its speed is given; else nothing.

    Raises:
        ConfigError: a number of speeds that is not that of the phases, or one that does not fit the fixed part.
    """
    rates = options.gpu_images_per_second
    if rates and len(rates) != len(phases):
        raise ConfigError(
            f"--gpu-images-per-second: received {len(rates)} speeds, expected one for each of {', '.join(phases)}"
        )
    return [compute_from_rate(rate, batch_size, options.gpu_fixed_ms / 1e3) for rate in rates]


def _sizes(batch_size: int) -> tuple[int, ...]:
    """The batches of one worker that are measured: the run's, and parts of it.

    Raises:
        ConfigError: it has too few parts.
    """
    sizes = tuple(sorted({max(1, batch_size // part) for part in (8, 4, 2, 1)}))
    if len(sizes) < 3:
        raise ConfigError(f"batch_size: received {batch_size}, expected 4 or more, to measure parts of it too")
    return sizes


# ---------------------------------------------------------------------- measuring


def _measure(job: TrainingContext, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Start the workers, and let them measure -> what `scaling_worker.measure` returns, workers and place."""
    total = ray.cluster_resources()
    gpus = 0.0 if job.config.accelerator == "cpu" else total.get("GPU", 0.0)
    world = min(2, int(gpus)) if gpus else 2
    each = resources_per_worker(world, world, total.get("CPU", 0.0), gpus)
    precision = run_precision(dataclasses.replace(job.config, workers=str(world)))  # one for all, as in a run
    job = dataclasses.replace(job, config=with_precision(job.config, precision), loader_cpus=each.loader_cpus)
    own = tempfile.mkdtemp(prefix="pharmclf-ray-train-")
    # over the network, where there is one
    trainer = build_trainer(
        _worker, {"job": job, "sizes": sizes}, WorkerGroupSpec(world, each), own, placement="SPREAD"
    )
    try:
        return {"workers": world} | trainer.fit().return_value
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _worker(settings: dict[str, Any]) -> dict[str, Any]:
    """One Ray Train worker. (all ranks)"""
    job: TrainingContext = settings["job"]
    context = ray.train.get_context()
    beside = context.get_local_world_size()
    cores = _pin_to_cores(context.get_local_rank(), beside)
    configure_devices_for(job.config)
    from pharmclf.benchmark import scaling_worker
    from pharmclf.training import collectives

    plan = scaling_worker.MeasurePlan(
        job=job, sizes=settings["sizes"], rounds=_ROUNDS, steps=_STEPS, streamed_steps=_STREAMED_STEPS
    )  # fmt: skip
    found = scaling_worker.measure(plan, collectives.init_distributed(cores))
    nodes = "all on one node, whose memory they share" if beside > 1 else "a node for each"
    return found | {"place": f"{format_count(cores, 'core')} each, {nodes}"}


def _pin_to_cores(place: int, beside: int) -> int:
    """Keep this process to its part of the node's cores, so that one worker is as fast as each of many.

    Args:
        place: of this worker on its node, from 0.
        beside: workers on this node.

    Returns:
        number of cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        return max(1, usable_cores() // beside)
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // beside)
    mine = cores[place * each : (place + 1) * each] or cores
    for thread in Path("/proc/self/task").iterdir():  # those to come take after the one that starts them
        os.sched_setaffinity(int(thread.name), mine)
    return len(mine)


# ---------------------------------------------------------------------- told to the user


def _say_phase(phase: dict[str, Any], batch_size: int, world: int, say: Say) -> None:
    name, compute = phase["phase"], phase["compute"]
    sizes = ", ".join(str(images) for images, _ in phase["alone"])
    say(
        f"{name}: {phase['parameters']:,} trained parameters; {phase['bytes'] / 1e6:.2f} MB to all-reduce a step. "
        f"Compute {1e3 * compute['fixed_s']:.1f} ms + {1e3 * compute['image_s']:.2f} ms an image "
        f"(line within {phase['compute_error']:.0%} at {sizes} images)"
    )
    if phase["checks"]:
        say(
            f"{name}: all-reduce of the step's tensors by itself {1e3 * phase['bare']:.1f} ms; a worker beside a busy "
            f"one takes {phase['slowdown']:.2f} times as long as alone"
        )
    for check in phase["checks"]:
        say(
            f"{name}: {world} workers, {_BATCHES[check['batch']]} ({check['images']} images each): "
            f"step {1e3 * check['step_s']:.1f} ms, predicted {1e3 * check['predicted_s']:.1f} ms "
            f"(error {check['error']:+.0%}); efficiency {check['efficiency']:.0%}, "
            f"predicted {check['predicted_efficiency']:.0%}"
        )
    for streamed in phase["streamed"]:
        say(
            f"{name}: {format_count(streamed['workers'], 'worker')} on images from the stream: step "
            f"{1e3 * streamed['step_s']:.1f} ms, of which {1e3 * streamed['wait_s']:.1f} ms waiting for images; "
            f"{batch_size / streamed['step_s']:.0f} images/s"
        )


def _say_verdict(errors: list[float], tolerance: float, say: Say) -> bool:
    """Say whether the model holds -> the same."""
    if not errors:
        say("check of the model: none, for there is one GPU; --accelerator cpu measures two workers on the cores")
        return True
    worst = max(errors, key=abs)
    holds = abs(worst) <= tolerance
    verdict = "holds" if holds else "does NOT hold"
    say(f"check of the model: largest error {worst:+.0%}, allowed {tolerance:.0%}: it {verdict} here")
    return holds


def _say_forecast(rows: list[dict[str, Any]], phases: list[dict[str, Any]], batch_size: int, say: Say) -> None:
    whole = f"global batch {batch_size} shared by all, as in a run"
    titles = {"fixed": whole, "grown": f"{batch_size} images on each, a global batch that grows with them"}
    for phase in phases:
        for batch, title in titles.items():
            say(f"expected efficiency in %, {phase['phase']}, {phase['bytes'] / 1e6:.1f} MB a step, {title}:")
            mine = [row for row in rows if row["phase"] == phase["phase"] and row["batch"] == batch]
            table = [["GPUs", *map(str, GPUS)]]
            for gbit in dict.fromkeys(row["link_gbit"] for row in mine):
                found = {row["gpus"]: 100 * row["efficiency"] for row in mine if row["link_gbit"] == gbit}
                table.append([f"{gbit:g} Gbit/s", *(f"{found[gpus]:.0f}" if gpus in found else "-" for gpus in GPUS)])
            for line in align_columns(table, left=[]):
                say(line)
