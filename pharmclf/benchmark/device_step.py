"""The training steps of a run on one device in one precision, in a process of their own."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pharmclf.benchmark.energy import measure_energy
from pharmclf.config import RunConfig
from pharmclf.core.errors import ConfigError, format_error
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.models.devices import configure_devices, gpu_compute_capability, peak_memory_bytes, reset_peak_memory
from pharmclf.monitoring import DriverNvml, NvmlUnavailableError
from pharmclf.training.phases import Phase

_MAX_S = 60.0  # of a step; it is left out beyond
_MIN_STEPS = 3
_WARM_UP = 0.25  # of the seconds measured: a GPU loads kernels when they are first used, a loss scale has to sink
_CAPABILITIES = {"float32": (0, 0), "mixed_float16": (7, 0), "mixed_bfloat16": (8, 0)}


def measure_steps(
    config: RunConfig, phases: Sequence[Phase], precision: str, gpu: int | None, seconds: float
) -> dict[str, dict[str, Any]]:
    """Measure the step of each phase, one after the other; the import of TensorFlow is paid once for all.

    Args:
        config: the run.
        phases: those that are measured, by rising need of memory, as a run has them: a process keeps what it once took.
        precision: of the steps.
        gpu: index by the order of the PCI bus; None: the processors.
        seconds: how long each.

    Returns:
        For each phase images_per_second, memory_bytes, memory_of (what that is), joules_per_1000 (None: not known);
        or skipped, a reason.

    Raises:
        ConfigError: bad input.
    """
    os.environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "-1" if gpu is None else str(gpu)}
    with suppress_native_stderr():
        import tensorflow as tf

        configure_devices(deterministic=config.deterministic, gpus=gpu is not None)
        capability = gpu_compute_capability()
        if gpu is not None and capability is None:
            return skip_phases(phases, "TensorFlow does not see it")
        if capability is not None and capability < _CAPABILITIES[precision]:
            return skip_phases(phases, "no fast units for it")
        tf.zeros(1).numpy()  # the runtime's own memory is none of the step's
        before = resident_bytes(peak=False)
        found: dict[str, dict[str, Any]] = {}
        for phase in phases:
            gc.collect()  # the networks before
            reset_peak_memory()
            try:
                found[phase.name] = _measure_step(config, phase, precision, gpu, seconds, before)
            except ConfigError:
                raise
            except Exception as error:  # out of memory, or an operation that has no kernel for this precision
                found |= skip_phases([phase], format_error(error)[:80])
    return found


def skip_phases(phases: Iterable[Phase], why: str) -> dict[str, dict[str, Any]]:
    """Phases that are not measured, with the reason."""
    return {phase.name: {"skipped": why} for phase in phases}


def _measure_step(
    config: RunConfig, phase: Phase, precision: str, gpu: int | None, seconds: float, before: int
) -> dict[str, Any]:
    """One phase; `before` is the memory of the process without networks."""
    from pharmclf.benchmark.synthetic_step import SyntheticStep

    step = SyntheticStep.of(config, phase, precision)
    step()  # traces
    began = time.perf_counter()
    step()
    if (one_s := time.perf_counter() - began) > _MAX_S:
        return {"skipped": f"a step takes {one_s:.0f} s"}
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
        return {"skipped": "the loss is not finite"}
    memory, kind = resident_bytes(peak=True) - before, "growth of the process"
    if gpu is not None:
        memory, kind = peak_memory_bytes(), "peak of TensorFlow's allocator"
    images = count * config.batch_size
    known = energy.joules if gpu is None or nvml is not None else None  # else it is the processors'
    return {
        "images_per_second": images / took, "memory_bytes": memory, "memory_of": kind,
        "joules_per_1000": None if known is None else 1000 * known / images, "skipped": "",
    }  # fmt: skip


def resident_bytes(*, peak: bool) -> int:
    """Memory of this process now, or at most so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss also counts the process that this one was started from
        name = "VmHWM:" if peak else "VmRSS:"
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
