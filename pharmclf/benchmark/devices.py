"""CPU and GPUs side by side: the training step of each phase in each precision, with memory and energy."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pharmclf.benchmark.device_step import measure_steps, skip_phases
from pharmclf.benchmark.options import MeasureOptions
from pharmclf.benchmark.tables import format_number, format_ratio, processor_name
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.errors import ConfigError, format_error
from pharmclf.core.subprocess_call import SubprocessDiedError, run_in_subprocess
from pharmclf.core.tables import align_columns
from pharmclf.monitoring import DriverNvml, NvmlUnavailableError
from pharmclf.training.phases import Phase, build_phases

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
_SLOW = "processors have no units for float16; TensorFlow widens each value"


def benchmark_devices(config: RunConfig, options: MeasureOptions, say: Say) -> dict[str, Any]:
    """Measure every phase on the processors and on one GPU of each kind, each precision in a process of its own.

    Args:
        config: backbone, image size, batch and unfreeze depth; the weights are random, the images noise.
        options: seconds of each.
        say: takes lines for the console.

    Returns:
        rows: device, gpu (None: processors), precision, phase, batch_size, images_per_second, memory_bytes, memory_of,
        joules_per_1000 and ratio to the processors in float32; what was not measured is None, and `skip_phases` says
        why.
    """
    devices: list[tuple[str, int | None]] = [(processor_name(), None), *_gpus(config)]
    rows: list[dict[str, Any]] = []
    for name, gpu in devices:
        for precision in PRECISIONS:
            found = measure_steps_in_subprocess(config, build_phases(config), precision, gpu, options.seconds)
            for phase, values in found.items():
                about = {"device": name, "gpu": gpu, "precision": precision, "phase": phase}
                rows.append(about | {"batch_size": config.batch_size} | _NOT_MEASURED | values)
    rows = with_ratios(rows)
    for line in devices_table(rows):
        say(line)
    return {"backbone": config.backbone, "image_size": config.image_size, "rows": rows}


_NOT_MEASURED: dict[str, Any] = {
    "images_per_second": None, "memory_bytes": None, "memory_of": "", "joules_per_1000": None, "skipped": "",
}  # fmt: skip


def measure_steps_in_subprocess(
    config: RunConfig, phases: Sequence[Phase], precision: str, gpu: int | None, seconds: float
) -> dict[str, dict[str, Any]]:
    """What the step of each phase comes to, or why it does not; as `measure_steps`, in a process of their own."""
    if gpu is None and precision == "mixed_float16":
        return skip_phases(phases, _SLOW)
    try:
        return run_in_subprocess(
            partial(measure_steps, dataclasses.replace(config, workers="0"), phases, precision, gpu, seconds)
        )
    except ConfigError:
        raise
    except SubprocessDiedError as error:
        if len(phases) == 1:
            return skip_phases(phases, str(error))
        alone = [measure_steps_in_subprocess(config, [phase], precision, gpu, seconds) for phase in phases]
        return {name: values for each in alone for name, values in each.items()}  # one has not taken the others along
    except Exception as error:
        return skip_phases(phases, format_error(error)[:80])


def _gpus(config: RunConfig) -> list[tuple[str, int]]:
    """Name and index of one GPU of each kind that this process may use."""
    if config.accelerator == "cpu":
        return []
    try:
        nvml = DriverNvml()
    except NvmlUnavailableError:
        return []
    allowed = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    kinds: dict[str, int] = {}
    for index in range(nvml.num_gpus):
        if not allowed or str(index) in allowed:
            kinds.setdefault(nvml.read(index).name, index)
    return list(kinds.items())


def with_ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each row with its images/s as a multiple of the processors' in float32 in the same phase. Pure."""
    base = {row["phase"]: row["images_per_second"] for row in rows
            if row["gpu"] is None and row["precision"] == "float32"}  # fmt: skip
    found = []
    for row in rows:
        mine, first = row["images_per_second"], base.get(row["phase"])
        found.append({**row, "ratio": mine / first if mine and first else None})
    return found


def devices_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as lines of text."""
    heads = ["device", "precision", "phase", "batch", "images/s", "memory MB", "J / 1,000 images", "x CPU float32"]
    lines = []
    for row in rows:
        memory = None if row["memory_bytes"] is None else row["memory_bytes"] / 1e6
        lines.append(
            [
                row["device"],
                row["precision"],
                row["phase"],
                str(row["batch_size"]),
                format_number(row["images_per_second"]),
                format_number(memory, 0),
                format_number(row["joules_per_1000"]),
                format_ratio(row["ratio"]),
            ]
        )
    why = {f"{row['device']}, {row['precision']}: skipped, {row['skipped']}": None for row in rows if row["skipped"]}
    return [*align_columns([heads, *lines], left=[0]), *why]
