"""Check of the NVIDIA GPUs of a node: which there are, and which processes hold their memory."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil

from pharmclf.config import RunConfig
from pharmclf.core.units import format_memory
from pharmclf.diagnostics.machine_check import RayNodeInfo
from pharmclf.diagnostics.results import Finding, fail, ok, warn
from pharmclf.monitoring import DriverNvml, NvmlUnavailableError
from pharmclf.monitoring.samples import GpuProcess

_MIN_BYTES = 2 << 30  # free, for a small network at a small batch
_HELD_SHARE = 0.1  # of the memory; a desktop holds less
_MIN_CAPABILITIES = {"mixed_float16": (7, 0), "mixed_bfloat16": (8, 0)}  # for fast units (see `models.devices`)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU; None: the driver does not say."""

    index: int
    name: str
    capability: tuple[int, int] | None
    used_bytes: int | None
    total_bytes: int | None
    holders: tuple[str, ...] = ()
    """Processes that hold its memory, the largest first, as "python 12 (1.0 GiB)"."""


@dataclass(frozen=True, kw_only=True)
class DriverInfo:
    """What the NVIDIA driver says."""

    gpus: tuple[Gpu, ...] = ()
    version: str = ""
    """Of the driver; "" where there is none."""
    missing: str = ""
    """Why there is no GPU."""


def inspect_driver() -> DriverInfo:
    """Ask the driver of this node."""
    try:
        nvml = DriverNvml()
    except NvmlUnavailableError as error:
        return DriverInfo(missing=str(error))
    gpus = tuple(_inspect_gpu(nvml, index) for index in range(nvml.num_gpus))
    return DriverInfo(gpus=gpus, version=nvml.driver_version)


def _inspect_gpu(nvml: DriverNvml, index: int) -> Gpu:
    reading = nvml.read(index)
    return Gpu(
        index=index,
        name=reading.name,
        capability=nvml.compute_capability(index),
        used_bytes=reading.memory_used_bytes,
        total_bytes=reading.memory_total_bytes,
        holders=tuple(map(_describe_process, nvml.processes(index))),
    )


def _describe_process(process: GpuProcess) -> str:
    name = "process"
    with contextlib.suppress(psutil.Error):  # of another container, or gone
        name = psutil.Process(process.pid).name()
    size = f" ({format_memory(process.used_bytes)})" if process.used_bytes is not None else ""
    return f"{name} {process.pid}{size}"


def check_gpus(driver: DriverInfo, ray: RayNodeInfo | None, config: RunConfig) -> list[Finding]:
    """Whether the GPUs are those that a run needs, are free, and are known to Ray; `ray` as in `check_cpus`. Pure."""
    if config.accelerator == "cpu":
        return [ok("GPU", "not used, because of --accelerator cpu")]
    if not driver.gpus:
        text = f"no GPU here: {driver.missing}"
        if ray is not None and ray.gpus > 0:
            remedy = "repair the driver, or start its Ray with --num-gpus=0"
            return [fail("GPU", f"{text}; Ray counts {ray.gpus:g}", remedy)]
        return [ok("GPU", f"{text}; TensorFlow computes on the processors")]
    findings = [_check_gpu(gpu, driver.version, config.precision) for gpu in driver.gpus]
    if ray is not None and ray.gpus != len(driver.gpus):
        text = f"Ray counts {ray.gpus:g} GPUs, the driver {len(driver.gpus)}"
        remedy = f"start its Ray with --num-gpus={len(driver.gpus)}, or without --num-gpus and CUDA_VISIBLE_DEVICES"
        findings.append((fail if ray.gpus > len(driver.gpus) else warn)("GPU", text, remedy))
    return findings


def _check_gpu(gpu: Gpu, driver_version: str, precision: str) -> Finding:
    text = f"{gpu.index}: {gpu.name}, driver {driver_version}"
    if gpu.capability:
        text += f", compute capability {gpu.capability[0]}.{gpu.capability[1]}"
    if gpu.used_bytes is None or gpu.total_bytes is None:
        remedy = "see `nvidia-smi` and `dmesg` on this node; a lost card needs a restart of the machine"
        return warn("GPU", f"{text}: the driver does not report its memory", remedy)
    free = gpu.total_bytes - gpu.used_bytes
    text += f", {format_memory(free)} of {format_memory(gpu.total_bytes)} free"
    held = f"{text}; held by {', '.join(gpu.holders) or 'processes that the driver does not name'}"
    if free < _MIN_BYTES:
        return fail("GPU", held, "end these processes, or choose another GPU with CUDA_VISIBLE_DEVICES")
    if gpu.used_bytes > _HELD_SHARE * gpu.total_bytes:
        return warn("GPU", held, "end these processes, or give a smaller --batch-size")
    least = _MIN_CAPABILITIES.get(precision)
    if least and gpu.capability and gpu.capability < least:
        remedy = "give --precision auto, which chooses the fastest one of the GPU"
        return warn("GPU", f"{text}; {precision} is slow below capability {least[0]}.{least[1]}", remedy)
    return ok("GPU", text)
