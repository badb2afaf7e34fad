"""Benchmark of processors and GPUs: the training step of each phase in each precision, with memory and energy."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from pharmclf.benchmark.measure import (
    MeasureOptions,
    Report,
    format_number,
    format_ratio,
    measure_energy,
    processor_name,
    resident_bytes,
)
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.errors import ConfigError, format_error
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.subprocess_call import SubprocessDiedError, run_in_subprocess
from pharmclf.core.tables import align_columns
from pharmclf.models.devices import configure_devices, gpu_compute_capability, peak_memory_bytes, reset_peak_memory
from pharmclf.monitoring import DriverNvml, Nvml, NvmlUnavailableError
from pharmclf.training.phases import Phase, build_phases

_CAPABILITIES = {"float32": (0, 0), "mixed_float16": (7, 0), "mixed_bfloat16": (8, 0)}  # of GPUs with fast units
_SLOW = "processors have no units for float16; TensorFlow widens each value"
_MAX_STEP_S = 60.0  # a slower step is skipped
_MIN_STEPS = 3
_WARM_UP = 0.25  # of the seconds measured: a GPU loads kernels at their first use, a loss scale has to sink


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """Measurements of a training step; None: not measured."""

    images_per_second: float | None = None
    memory_bytes: int | None = None
    memory_of: str = ""
    """What the memory is: of the process, or of TensorFlow's allocator."""
    joules_per_1000: float | None = None
    """Energy of 1,000 images."""
    skipped: str = ""
    """Why nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class DeviceRow(StepFigures):
    """The training step of one phase on one device in one precision."""

    device: str
    gpu: int | None
    """Index of the GPU; None: the processors."""
    precision: str
    phase: str
    batch_size: int
    ratio: float | None = None
    """Images/s as a multiple of those of the processors in float32."""


def benchmark_devices(config: RunConfig, options: MeasureOptions, say: Say) -> Report:
    """Measure every phase on the processors and on one GPU of each kind, each precision in a child process.

    Args:
        config: backbone, image size, batch and unfreeze depth; the weights are random, the images noise.

    Returns:
        rows: fields of DeviceRow.
    """
    rows, devices = list[DeviceRow](), list[tuple[str, int | None]]([(processor_name(), None)])
    if config.accelerator != "cpu":
        with contextlib.suppress(NvmlUnavailableError):
            devices += list_gpus(DriverNvml(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    for device, gpu in devices:
        for precision in _CAPABILITIES:
            figures = measure_steps_in_subprocess(config, build_phases(config), precision, gpu, options.seconds)
            for phase, step in figures.items():
                row = DeviceRow(
                    device=device, gpu=gpu, precision=precision, phase=phase, batch_size=config.batch_size,
                    **dataclasses.asdict(step),
                )  # fmt: skip
                rows.append(row)
    rows = with_ratios(rows)
    for line in devices_table(rows):
        say(line)
    plain_rows = [dataclasses.asdict(row) for row in rows]
    return {"backbone": config.backbone, "image_size": config.image_size, "rows": plain_rows}


def measure_steps_in_subprocess(
    config: RunConfig, phases: Sequence[Phase], precision: str, gpu: int | None, seconds: float
) -> dict[str, StepFigures]:
    """As `measure_steps`, in a child process; a phase that kills it does not affect the others."""
    if gpu is None and precision == "mixed_float16":
        return _skip(phases, _SLOW)
    try:
        config = dataclasses.replace(config, num_workers="0")
        return run_in_subprocess(partial(measure_steps, config, phases, precision, gpu, seconds))
    except ConfigError:
        raise
    except SubprocessDiedError as error:
        if len(phases) == 1:
            return _skip(phases, str(error))
        alone = [measure_steps_in_subprocess(config, [phase], precision, gpu, seconds) for phase in phases]
        return {name: step for each in alone for name, step in each.items()}
    except Exception as error:
        return _skip(phases, format_error(error)[:80])


def _skip(phases: Iterable[Phase], reason: str) -> dict[str, StepFigures]:
    return {phase.name: StepFigures(skipped=reason) for phase in phases}


def list_gpus(nvml: Nvml, visible: str | None) -> list[tuple[str, int]]:
    """Name and index of one GPU of each kind; `visible` is CUDA_VISIBLE_DEVICES: None for all of them, "" for none."""
    allowed = None if visible is None else {part.strip() for part in visible.split(",")}
    kinds: dict[str, int] = {}
    for index in range(nvml.num_gpus):
        if allowed is None or str(index) in allowed:
            kinds.setdefault(nvml.read(index).name, index)
    return list(kinds.items())


def measure_steps(
    config: RunConfig, phases: Sequence[Phase], precision: str, gpu: int | None, seconds: float
) -> dict[str, StepFigures]:
    """Measure the step of each phase in this process; the import of TensorFlow is paid once for all.

    Args:
        phases: in the order of a run, by rising need of memory: a process keeps what it has allocated.
        gpu: index by the order of the PCI bus; None: the processors.

    Raises:
        ConfigError: bad input.
    """
    os.environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "-1" if gpu is None else str(gpu)}
    with suppress_native_stderr():
        import tensorflow as tf

        configure_devices(deterministic=config.deterministic, gpus=gpu is not None)
        capability = gpu_compute_capability()
        if gpu is not None and capability is None:
            return _skip(phases, "TensorFlow does not see it")
        if capability is not None and capability < _CAPABILITIES[precision]:
            return _skip(phases, "no fast units for it")
        tf.zeros(1).numpy()  # the runtime's memory does not count
        before = resident_bytes(peak=False)
        figures: dict[str, StepFigures] = {}
        for phase in phases:
            gc.collect()  # the networks of the last phase
            reset_peak_memory()
            try:
                figures[phase.name] = _measure_step(config, phase, precision, gpu, seconds, before)
            except ConfigError:
                raise
            except Exception as error:  # out of memory, or an operation without a kernel for this precision
                figures |= _skip([phase], format_error(error)[:80])
    return figures


def _measure_step(
    config: RunConfig, phase: Phase, precision: str, gpu: int | None, seconds: float, before: int
) -> StepFigures:
    """One phase; `before` is the memory of the process without networks."""
    from pharmclf.benchmark.timed_step import build_synthetic_step

    step = build_synthetic_step(config, phase, precision)
    step()  # traces
    began = time.perf_counter()
    step()
    if (step_s := time.perf_counter() - began) > _MAX_STEP_S:
        return StepFigures(skipped=f"a step takes {step_s:.0f} s")
    while time.perf_counter() - began < _WARM_UP * seconds:
        step()
    nvml = None
    if gpu is not None:
        with contextlib.suppress(NvmlUnavailableError):
            nvml = DriverNvml()
    count, began = 0, time.perf_counter()
    with measure_energy(nvml, gpu or 0) as energy:
        while count < _MIN_STEPS or time.perf_counter() - began < seconds:
            sums = step()
            count += 1
        took = time.perf_counter() - began
    if not math.isfinite(float(sums[0])):
        return StepFigures(skipped="the loss is not finite")
    images = count * config.batch_size
    is_known = energy.joules is not None and (gpu is None or nvml is not None)  # else it is that of the processors
    return StepFigures(
        images_per_second=images / took,
        memory_bytes=peak_memory_bytes() if gpu is not None else resident_bytes(peak=True) - before,
        memory_of="peak of TensorFlow's allocator" if gpu is not None else "growth of the process",
        joules_per_1000=1000 * (energy.joules or 0.0) / images if is_known else None,
    )


def with_ratios(rows: Sequence[DeviceRow]) -> list[DeviceRow]:
    """The rows with their ratios, by phase; pure."""
    base = {
        row.phase: row.images_per_second for row in rows if row.gpu is None and row.precision == "float32"
    }  # fmt: skip
    return [
        dataclasses.replace(row, ratio=row.images_per_second / first)
        if row.images_per_second and (first := base.get(row.phase))
        else row
        for row in rows
    ]


def devices_table(rows: Sequence[DeviceRow]) -> list[str]:
    """The rows as lines of text; pure."""
    lines = [["device", "precision", "phase", "batch", "images/s", "memory MB", "J / 1,000 images", "x CPU float32"]]
    for row in rows:
        memory_mb = None if row.memory_bytes is None else row.memory_bytes / 1e6
        figures = [
            format_number(row.images_per_second),
            format_number(memory_mb, 0),
            format_number(row.joules_per_1000),
        ]
        lines.append([row.device, row.precision, row.phase, str(row.batch_size), *figures, format_ratio(row.ratio)])
    skipped = [f"{row.device}, {row.precision}: skipped, {row.skipped}" for row in rows if row.skipped]
    return [*align_columns(lines, left=[0]), *dict.fromkeys(skipped)]
