"""NVIDIA GPUs through NVML, the library behind nvidia-smi, in an interface that a test can replay from a recording.

The package nvidia-ml-py and the driver are loaded when they are needed, and may be missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pharmclf.monitoring.samples import GpuProcess, GpuReading

REASONS = {
    0x001: "idle",
    0x002: "clocks set by the administrator",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "thermal slowdown (driver)",
    0x040: "thermal slowdown (hardware)",
    0x080: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability",
}
"""What may limit a GPU's clocks, by the bit of NVML's clocks event reasons."""
HARMFUL = ("hardware slowdown", "thermal slowdown (driver)", "thermal slowdown (hardware)", "power brake")
"""Those that indicate overheating or a weak power supply. A busy card is at its power cap all day."""


class NvmlUnavailableError(RuntimeError):
    """No GPU can be read; the text says why."""


class _GpuLostError(Exception):
    """The driver cannot reach the GPU."""


class Nvml(Protocol):
    """The GPUs of a node."""

    @property
    def num_gpus(self) -> int:
        """How many there are."""

    def read(self, index: int) -> GpuReading:
        """One GPU now, without its processes; what it does not report is None. Never raises."""

    def processes(self, index: int) -> Sequence[GpuProcess]:
        """The processes that use memory of a GPU, the largest first."""


def read_gpus(nvml: Nvml, processes_from_percent: float = 0.0) -> tuple[GpuReading, ...]:
    """All GPUs of a node now; processes are listed of a GPU with at least so much of its memory in use."""
    readings = []
    for index in range(nvml.num_gpus):
        reading = nvml.read(index)
        if (reading.memory_percent or 0.0) >= processes_from_percent:
            reading = dataclasses.replace(reading, processes=tuple(nvml.processes(index)))
        readings.append(reading)
    return tuple(readings)


def decode_reasons(reasons: int) -> dict[str, float]:
    """Names of the set bits of NVML's clocks event reasons, each with its share of this moment, 1."""
    return {word: 1.0 for bit, word in REASONS.items() if reasons & bit}


class DriverNvml:
    """The GPUs that the driver of this machine reports; in a container, those that it was given."""

    def __init__(self) -> None:
        """Open the driver's library.

        Raises:
            NvmlUnavailableError: the driver, a GPU, or the package nvidia-ml-py is missing.
        """
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError as error:
            raise NvmlUnavailableError("the package nvidia-ml-py is not installed") from error
        try:
            self._nvml.nvmlInit()
            self._handles = [self._handle(index) for index in range(self._nvml.nvmlDeviceGetCount())]
        except self._nvml.NVMLError as error:
            missing = error.value == self._nvml.NVML_ERROR_LIBRARY_NOT_FOUND
            reason = "no NVIDIA driver" if missing else f"the NVIDIA driver reports: {error}"
            raise NvmlUnavailableError(reason) from error
        if not self._handles:
            raise NvmlUnavailableError("the NVIDIA driver reports no GPU")
        self._names = [str(self._try(index, "nvmlDeviceGetName") or "") for index in range(self.num_gpus)]

    @property
    def num_gpus(self) -> int:
        """How many there are."""
        return len(self._handles)

    @property
    def driver_version(self) -> str:
        """Such as 550.54.15; "" where the driver does not report it."""
        try:
            return str(self._nvml.nvmlSystemGetDriverVersion())
        except self._nvml.NVMLError:
            return ""

    def compute_capability(self, index: int) -> tuple[int, int] | None:
        """Of a GPU, as (8, 0); None where it does not report it."""
        capability = self._try(index, "nvmlDeviceGetCudaComputeCapability")
        return None if capability is None else (int(capability[0]), int(capability[1]))

    def read(self, index: int) -> GpuReading:
        """One GPU now, without its processes."""
        try:
            return self._read(index)
        except _GpuLostError:
            return GpuReading(index=index, name=self._names[index], lost=True)

    def processes(self, index: int) -> Sequence[GpuProcess]:
        """The processes that compute on a GPU, the largest first."""
        running = self._try(index, "nvmlDeviceGetComputeRunningProcesses") or ()
        processes = [GpuProcess(pid=int(process.pid), used_bytes=process.usedGpuMemory) for process in running]
        return tuple(sorted(processes, key=lambda process: -(process.used_bytes or 0)))

    def _read(self, index: int) -> GpuReading:
        nvml = self._nvml
        memory = self._query(index, "nvmlDeviceGetMemoryInfo")
        utilisation = self._query(index, "nvmlDeviceGetUtilizationRates")
        celsius = "nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"
        reasons = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
        uncorrected = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        return GpuReading(
            index=index,
            name=self._names[index],
            utilisation_percent=None if utilisation is None else float(utilisation.gpu),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            temperature_c=self._number(index, *celsius, arguments=[nvml.NVML_TEMPERATURE_GPU]),
            power_w=self._number(index, "nvmlDeviceGetPowerUsage", unit=1000.0),
            power_limit_w=self._number(index, "nvmlDeviceGetEnforcedPowerLimit", unit=1000.0),
            sm_clock_mhz=self._number(index, "nvmlDeviceGetClockInfo", arguments=[nvml.NVML_CLOCK_SM]),
            memory_clock_mhz=self._number(index, "nvmlDeviceGetClockInfo", arguments=[nvml.NVML_CLOCK_MEM]),
            throttle=decode_reasons(int(self._query(index, *reasons) or 0)),
            ecc_errors=self._query(index, "nvmlDeviceGetTotalEccErrors", arguments=uncorrected),
        )

    def _number(self, index: int, *functions: str, arguments: Sequence[object] = (), unit: float = 1.0) -> float | None:
        value = self._query(index, *functions, arguments=arguments)
        return None if value is None else float(value / unit)

    def _handle(self, index: int) -> Any:
        with contextlib.suppress(self._nvml.NVMLError):  # else it is lost already
            return self._nvml.nvmlDeviceGetHandleByIndex(index)
        return None

    def _try(self, index: int, function: str) -> Any:
        """As `_query`, but None where the GPU is lost."""
        with contextlib.suppress(_GpuLostError):
            return self._query(index, function)
        return None

    def _query(self, index: int, *functions: str, arguments: Sequence[object] = ()) -> Any:
        """Call the first of these functions that package and driver both have -> None where it does not report it."""
        nvml, handle = self._nvml, self._handles[index]
        if handle is None:
            raise _GpuLostError
        for name in functions:
            function: Callable[..., Any] | None = getattr(nvml, name, None)
            if function is None:
                continue
            try:
                return function(handle, *arguments)
            except nvml.NVMLError as error:
                if error.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
                    raise _GpuLostError from error
                if error.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                    return None
        return None
