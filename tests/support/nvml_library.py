"""Stands for the library of the NVIDIA driver, below the package nvidia-ml-py."""

from __future__ import annotations

import ctypes
from typing import Any

import pynvml
import pytest


class Library:
    """Stands for libnvidia-ml.so: the functions by their names in C, which write where their pointers point."""

    def __init__(self, **broken: int) -> None:
        self.broken = broken
        """Code that a function returns, by its name."""
        self.count, self.processes = 2, [(4711, 5 << 30), (12, 30 << 30)]

    def __getattr__(self, name: str) -> Any:
        if self.broken.get(name) == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise AttributeError(name)  # a driver that does not know it
        function = type(self).__dict__[f"do_{name.removesuffix('_v2')}"]

        def call(*arguments: Any) -> int:
            return self.broken.get(name) or function(self, *arguments) or pynvml.NVML_SUCCESS

        return call

    def do_nvmlInitWithFlags(self, _flags: int) -> None: ...
    def do_nvmlErrorString(self, _code: int) -> bytes:
        return b"an error"

    def do_nvmlSystemGetDriverVersion(self, version: Any, _length: Any) -> None:
        version.value = b"550.54.15"

    def do_nvmlDeviceGetCudaComputeCapability(self, _handle: Any, major: Any, minor: Any) -> None:
        major._obj.value, minor._obj.value = 8, 9

    def do_nvmlDeviceGetCount(self, count: Any) -> None:
        count._obj.value = self.count

    def do_nvmlDeviceGetHandleByIndex(self, index: Any, handle: Any) -> None:
        ctypes.memmove(handle, ctypes.byref(ctypes.c_void_p(1 + index.value)), ctypes.sizeof(ctypes.c_void_p))

    def do_nvmlDeviceGetName(self, _handle: Any, name: Any, _length: Any) -> None:
        name.value = b"NVIDIA L4"

    def do_nvmlDeviceGetUtilizationRates(self, _handle: Any, rates: Any) -> None:
        rates._obj.gpu, rates._obj.memory = 93, 40

    def do_nvmlDeviceGetMemoryInfo(self, _handle: Any, memory: Any) -> None:
        memory._obj.used, memory._obj.total = 20 << 30, 24 << 30

    def do_nvmlDeviceGetTemperatureV(self, _handle: Any, reading: Any) -> None:
        reading._obj.temperature = 71

    def do_nvmlDeviceGetTemperature(self, _handle: Any, _sensor: Any, celsius: Any) -> None:
        celsius._obj.value = 72

    def do_nvmlDeviceGetPowerUsage(self, _handle: Any, milliwatts: Any) -> None:
        milliwatts._obj.value = 69_500

    def do_nvmlDeviceGetEnforcedPowerLimit(self, _handle: Any, milliwatts: Any) -> None:
        milliwatts._obj.value = 72_000

    def do_nvmlDeviceGetClockInfo(self, _handle: Any, kind: Any, clock: Any) -> None:
        clock._obj.value = {pynvml.NVML_CLOCK_SM: 1700, pynvml.NVML_CLOCK_MEM: 6251}[kind.value]

    def do_nvmlDeviceGetCurrentClocksEventReasons(self, _handle: Any, reasons: Any) -> None:
        reasons._obj.value = 0x44

    def do_nvmlDeviceGetCurrentClocksThrottleReasons(self, _handle: Any, reasons: Any) -> None:
        reasons._obj.value = 0x80

    def do_nvmlDeviceGetTotalEccErrors(self, _handle: Any, kind: Any, counter: Any, count: Any) -> None:
        count._obj.value = 3 if (kind.value, counter.value) == (1, 0) else 99

    def do_nvmlDeviceGetComputeRunningProcesses_v3(self, _handle: Any, count: Any, found: Any) -> int:
        if found is None:
            count._obj.value = len(self.processes)
            return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
        count._obj.value = len(self.processes)
        for place, (pid, used) in enumerate(self.processes):
            found[place].pid, found[place].usedGpuMemory = pid, used
        return int(pynvml.NVML_SUCCESS)


def install_library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """Give this process the driver of a machine with two GPUs."""
    found = Library()
    monkeypatch.setattr(pynvml, "nvmlLib", found)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return found
