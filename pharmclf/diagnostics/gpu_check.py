"""The NVIDIA GPUs of a node as its driver tells of them: which they are, and who has their memory."""

from __future__ import annotations

import contextlib
import csv
import io
import subprocess
from dataclasses import dataclass, replace

import psutil

from pharmclf.core.units import format_memory
from pharmclf.diagnostics.machine_check import RayNodeInfo
from pharmclf.diagnostics.results import Finding, fail, ok, warn
from pharmclf.monitoring.gpu import DriverNvml, NvmlUnavailableError

_FIELDS = ("index", "name", "driver_version", "compute_cap", "memory.used", "memory.total")
_COMMAND = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
_TIMEOUT_S = 10.0
_MIB = 1 << 20
_MIN_BYTES = 2 << 30  # free, for a small network at a small batch
_HELD_SHARE = 0.1  # of the memory; a desktop takes less
_MIXED_CAPABILITY = {"mixed_float16": (7, 0), "mixed_bfloat16": (8, 0)}
"""From which compute capability on a GPU has fast units for a precision (see `models.devices`)."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    index: int
    name: str
    capability: tuple[int, int] | None
    """Compute capability; None: the driver does not tell."""
    used_bytes: int | None
    total_bytes: int | None
    holders: tuple[str, ...] = ()
    """Processes that hold its memory, the largest first, in words."""


@dataclass(frozen=True, kw_only=True)
class DriverInfo:
    """What the driver says."""

    gpus: tuple[Gpu, ...] = ()
    version: str = ""
    """Of the driver; "" where there is none."""
    missing: str = ""
    """Why no GPU is seen."""


def inspect_driver() -> DriverInfo:
    """Ask the driver of this node."""
    try:
        asked = subprocess.run(_COMMAND, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except FileNotFoundError:
        return DriverInfo(missing="no NVIDIA driver (there is no nvidia-smi)")
    except (OSError, subprocess.SubprocessError) as error:
        return DriverInfo(missing=f"nvidia-smi does not answer: {error}")
    if asked.returncode:
        said = " ".join((asked.stdout + asked.stderr).split())[:200]
        return DriverInfo(missing=f"nvidia-smi ended with {asked.returncode}: {said}")
    found = parse_nvidia_smi(asked.stdout)
    return replace(found, gpus=tuple(replace(gpu, holders=_gpu_processes(gpu.index)) for gpu in found.gpus))


def parse_nvidia_smi(text: str) -> DriverInfo:
    """What nvidia-smi has said."""
    gpus, version = [], ""
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        if len(row) != len(_FIELDS) or not row[0].strip().isdigit():
            continue
        index, name, version, capability, used, total = (cell.strip() for cell in row)
        major, _, minor = capability.partition(".")
        gpus.append(
            Gpu(
                index=int(index),
                name=name,
                capability=(int(major), int(minor)) if major.isdigit() and minor.isdigit() else None,
                used_bytes=int(used) * _MIB if used.isdigit() else None,
                total_bytes=int(total) * _MIB if total.isdigit() else None,
            )
        )
    return DriverInfo(gpus=tuple(gpus), version=version, missing="" if gpus else "the driver knows of no GPU")


def _gpu_processes(index: int) -> tuple[str, ...]:
    """Who holds the memory of a GPU, as far as NVML tells."""
    try:
        holders = DriverNvml().processes(index)
    except NvmlUnavailableError:
        return ()
    found = []
    for holder in holders:
        name = "process"
        with contextlib.suppress(psutil.Error):  # of another container, or gone
            name = psutil.Process(holder.pid).name()
        size = f" ({format_memory(holder.used_bytes)})" if holder.used_bytes is not None else ""
        found.append(f"{name} {holder.pid}{size}")
    return tuple(found)


def check_gpus(facts: DriverInfo, ray: RayNodeInfo | None, accelerator: str, precision: str) -> list[Finding]:
    """Whether the GPUs are those that a run needs, are free, and are known to Ray.

    Args:
        facts: of the driver.
        ray: what Ray takes the node for.
        accelerator: as in RunConfig.
        precision: as in RunConfig.
    """
    if accelerator == "cpu":
        return [ok("GPU", "left alone, as --accelerator cpu says")]
    if not facts.gpus:
        text = f"no GPU here: {facts.missing}"
        if ray is not None and ray.gpus > 0:
            remedy = "mend the driver, or start its Ray with --num-gpus=0"
            return [fail("GPU", f"{text}; Ray counts {ray.gpus:g}", remedy)]
        return [ok("GPU", f"{text}; TensorFlow computes on the processors")]
    found = [_check_gpu(gpu, facts.version, precision) for gpu in facts.gpus]
    if ray is not None and ray.gpus != len(facts.gpus):
        text = f"Ray counts {ray.gpus:g} GPUs, the driver {len(facts.gpus)}"
        remedy = f"start its Ray with --num-gpus={len(facts.gpus)}, or without --num-gpus and CUDA_VISIBLE_DEVICES"
        found.append((fail if ray.gpus > len(facts.gpus) else warn)("GPU", text, remedy))
    return found


def _check_gpu(gpu: Gpu, driver: str, precision: str) -> Finding:
    text = f"{gpu.index}: {gpu.name}, driver {driver}"
    if gpu.capability:
        text += f", compute capability {gpu.capability[0]}.{gpu.capability[1]}"
    if gpu.used_bytes is None or gpu.total_bytes is None:
        remedy = "see `nvidia-smi` and `dmesg` on this node; a card that is lost needs a restart of the machine"
        return warn("GPU", f"{text}: it does not tell of its memory", remedy)
    free = gpu.total_bytes - gpu.used_bytes
    text += f", {format_memory(free)} of {format_memory(gpu.total_bytes)} free"
    held = f"; held by {', '.join(gpu.holders) or 'others, whom it does not name'}"
    if free < _MIN_BYTES:
        return fail("GPU", text + held, "end these processes, or take another GPU by CUDA_VISIBLE_DEVICES")
    if gpu.used_bytes > _HELD_SHARE * gpu.total_bytes:
        return warn("GPU", text + held, "end these processes, or give a smaller --batch-size")
    least = _MIXED_CAPABILITY.get(precision)
    if least and gpu.capability and gpu.capability < least:
        remedy = "give --precision auto, which takes what the GPU is fast at"
        return warn("GPU", f"{text}; {precision} is slow below capability {least[0]}.{least[1]}", remedy)
    return ok("GPU", text)
