"""NVIDIA GPUs through NVML, the library behind nvidia-smi, in an interface so small that a recording can stand for it.

The package nvidia-ml-py and the driver are looked for when they are needed, and may be missing.
"""

from __future__ import annotations

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
"""What may hold a GPU's clocks down, by the bit of NVML's clocks event reasons."""
HARMFUL = ("hardware slowdown", "thermal slowdown (driver)", "thermal slowdown (hardware)", "power brake")
"""Those that tell of too much heat or too weak a power supply. The power cap is where a busy card works all day."""


class Nvml(Protocol):
    """The GPUs of a node."""

    @property
    def num_gpus(self) -> int:
        """How many there are."""

    def read(self, index: int) -> GpuReading:
        """One GPU now; what it does not tell is None, and none of it raises."""

    def holders(self, index: int) -> Sequence[GpuProcess]:
        """The processes that hold memory of a GPU, the largest first."""


class NvmlUnavailableError(RuntimeError):
    """There is no GPU that could be asked; the text says why."""


def decode_reasons(reasons: int) -> dict[str, float]:
    """The bits of NVML's clocks event reasons as words, each with its share of this moment."""
    return {word: 1.0 for bit, word in REASONS.items() if reasons & bit}


class DriverNvml:
    """The GPUs that the driver of this machine, or what a container sees of it, tells of."""

    def __init__(self) -> None:
        """Open the driver's library.

        Raises:
            NvmlUnavailableError: there is no driver, no GPU, or no package to ask them with.
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
            reason = "no NVIDIA driver" if missing else f"the NVIDIA driver says: {error}"
            raise NvmlUnavailableError(reason) from error
        if not self._handles:
            raise NvmlUnavailableError("the NVIDIA driver knows of no GPU")
        self._names = [self._name(handle) for handle in self._handles]

    @property
    def num_gpus(self) -> int:
        """How many there are."""
        return len(self._handles)

    def read(self, index: int) -> GpuReading:
        """One GPU now."""
        nvml, handle = self._nvml, self._handles[index]

        def ask(*names: str, arguments: Sequence[Any] = (), unit: float = 1.0) -> float | None:
            value = self._ask(handle, *names, arguments=arguments)
            return None if value is None else value / unit

        try:
            memory, used = (
                self._ask(handle, "nvmlDeviceGetMemoryInfo"),
                self._ask(handle, "nvmlDeviceGetUtilizationRates"),
            )
            errors = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            names = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
            return GpuReading(
                index=index,
                name=self._names[index],
                utilisation_percent=None if used is None else float(used.gpu),
                memory_used_bytes=None if memory is None else int(memory.used),
                memory_total_bytes=None if memory is None else int(memory.total),
                temperature_c=ask(
                    "nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature", arguments=[nvml.NVML_TEMPERATURE_GPU]
                ),
                power_w=ask("nvmlDeviceGetPowerUsage", unit=1000.0),
                power_limit_w=ask("nvmlDeviceGetEnforcedPowerLimit", unit=1000.0),
                sm_clock_mhz=ask("nvmlDeviceGetClockInfo", arguments=[nvml.NVML_CLOCK_SM]),
                memory_clock_mhz=ask("nvmlDeviceGetClockInfo", arguments=[nvml.NVML_CLOCK_MEM]),
                throttle=decode_reasons(int(self._ask(handle, *names) or 0)),
                ecc_errors=self._ask(handle, "nvmlDeviceGetTotalEccErrors", arguments=errors),
            )
        except _GpuLostError:
            return GpuReading(index=index, name=self._names[index], lost=True)

    def holders(self, index: int) -> Sequence[GpuProcess]:
        """The processes that compute on a GPU, the largest first."""
        try:
            found = self._ask(self._handles[index], "nvmlDeviceGetComputeRunningProcesses") or []
        except _GpuLostError:
            return ()
        holders = [GpuProcess(pid=int(process.pid), used_bytes=process.usedGpuMemory) for process in found]
        return sorted(holders, key=lambda holder: -(holder.used_bytes or 0))

    def _handle(self, index: int) -> Any:
        """Of a GPU; None where it is lost already."""
        try:
            return self._nvml.nvmlDeviceGetHandleByIndex(index)
        except self._nvml.NVMLError:
            return None

    def _name(self, handle: Any) -> str:
        """Of a GPU; "" where it is lost already."""
        try:
            return str(self._ask(handle, "nvmlDeviceGetName") or "")
        except _GpuLostError:
            return ""

    def _ask(self, handle: Any, *names: str, arguments: Sequence[Any] = ()) -> Any:
        """Call the first of these functions that package and driver both know -> None where the card does not tell.

        Raises:
            _GpuLostError: the card does not answer any more.
        """
        nvml = self._nvml
        if handle is None:
            raise _GpuLostError
        for name in names:
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


class _GpuLostError(Exception):
    """The driver cannot reach the GPU."""
