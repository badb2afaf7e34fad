"""GPUs through NVML: against a stand-in for the driver's library, and out of recordings of nvidia-smi."""

from __future__ import annotations

import os
import subprocess
import sys

import pynvml
import pytest
from support.nvml_library import Library, install_library

from pharmclf.monitoring.gpu import HARMFUL, REASONS, DriverNvml, NvmlUnavailableError, read_gpus
from pharmclf.monitoring.samples import GpuProcess, GpuReading


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """The driver of a machine with two GPUs."""
    return install_library(monkeypatch)


READING = GpuReading(
    index=1,
    name="NVIDIA L4",
    utilisation_percent=93.0,
    memory_used_bytes=20 << 30,
    memory_total_bytes=24 << 30,
    temperature_c=71.0,
    power_w=69.5,
    power_limit_w=72.0,
    sm_clock_mhz=1700.0,
    memory_clock_mhz=6251.0,
    throttle={"power cap": 1.0, "thermal slowdown (hardware)": 1.0},
    ecc_errors=3,
)


def test_a_reading_holds_what_the_driver_tells_in_our_units(library: Library) -> None:
    """Watts, bytes, degrees, megahertz; the bits of the clocks as words."""
    nvml = DriverNvml()
    assert nvml.num_gpus == 2
    assert nvml.read(1) == READING


def test_an_older_driver_is_asked_by_the_older_names(library: Library) -> None:
    """Functions have been renamed; a driver knows one of the names."""
    missing = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    library.broken = dict.fromkeys(("nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons"), missing)
    reading = DriverNvml().read(0)
    assert (reading.temperature_c, reading.throttle) == (72.0, {"power brake": 1.0})


@pytest.mark.parametrize(
    ("function", "field"),
    [
        ("nvmlDeviceGetUtilizationRates", "utilisation_percent"),
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetEnforcedPowerLimit", "power_limit_w"),
        ("nvmlDeviceGetTotalEccErrors", "ecc_errors"),
        ("nvmlDeviceGetClockInfo", "sm_clock_mhz"),
    ],
)
def test_what_a_card_does_not_tell_is_none_and_the_rest_is_there(library: Library, function: str, field: str) -> None:
    """Cards for desktops tell no memory errors, slices of a card no utilisation."""
    library.broken = {function: pynvml.NVML_ERROR_NOT_SUPPORTED}
    reading = DriverNvml().read(0)
    assert getattr(reading, field) is None
    assert reading.memory_used_bytes == 20 << 30
    assert not reading.lost


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED])
def test_a_card_that_is_lost_on_the_way_says_so(library: Library, code: int) -> None:
    nvml = DriverNvml()
    library.broken = {"nvmlDeviceGetMemoryInfo": code, "nvmlDeviceGetComputeRunningProcesses_v3": code}
    assert nvml.read(0) == GpuReading(index=0, name="NVIDIA L4", lost=True)
    assert nvml.processes(0) == ()


def test_a_card_that_is_lost_from_the_start_hides_no_other(library: Library) -> None:
    library.broken = {"nvmlDeviceGetHandleByIndex_v2": pynvml.NVML_ERROR_GPU_IS_LOST}
    nvml = DriverNvml()
    assert nvml.num_gpus == 2
    assert nvml.read(0).lost
    assert nvml.processes(0) == ()


def test_the_holders_of_memory_come_the_largest_first(library: Library) -> None:
    found = list(DriverNvml().processes(0))
    assert found == [GpuProcess(pid=12, used_bytes=30 << 30), GpuProcess(pid=4711, used_bytes=5 << 30)]


def test_the_driver_reports_its_version_and_what_its_gpus_can_compute(library: Library) -> None:
    nvml = DriverNvml()
    assert (nvml.driver_version, nvml.compute_capability(0)) == ("550.54.15", (8, 9))
    unknown = pynvml.NVML_ERROR_UNKNOWN
    library.broken = dict.fromkeys(("nvmlSystemGetDriverVersion", "nvmlDeviceGetCudaComputeCapability"), unknown)
    assert (nvml.driver_version, nvml.compute_capability(0)) == ("", None)


def test_processes_are_listed_from_a_share_of_the_memory_on(library: Library) -> None:
    """20 of 24 GiB are in use, 83 %."""
    nvml = DriverNvml()
    assert [len(gpu.processes) for gpu in read_gpus(nvml)] == [2, 2]
    assert [len(gpu.processes) for gpu in read_gpus(nvml, 90.0)] == [0, 0]


def test_a_machine_without_gpus_or_with_a_broken_driver_says_why(library: Library) -> None:
    library.count = 0
    with pytest.raises(NvmlUnavailableError, match="no GPU"):
        DriverNvml()
    library.broken = {"nvmlInitWithFlags": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}
    with pytest.raises(NvmlUnavailableError, match="Driver Not Loaded"):
        DriverNvml()


def test_a_machine_without_a_driver_or_the_package_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is looked for in a fresh process; here there is none, or else this test says nothing."""
    code = (
        "from pharmclf.monitoring.gpu import *\ntry:\n    DriverNvml()\nexcept NvmlUnavailableError as error:\n  "
        "  print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    if not done.stdout:
        pytest.skip("this machine has an NVIDIA driver")
    assert done.stdout.strip() == "no NVIDIA driver"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NvmlUnavailableError, match="nvidia-ml-py is not installed"):
        DriverNvml()


def test_the_words_for_the_clocks_are_those_of_nvml() -> None:
    """Each bit that the package knows has a word, and the harmful ones are heat and power."""
    prefix = "nvmlClocksThrottleReason"
    bits = {value for name, value in vars(pynvml).items() if name.startswith(prefix) and bin(value).count("1") == 1}
    assert set(REASONS) == bits
    harmful = {bit for bit, word in REASONS.items() if word in HARMFUL}
    names = ("HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
    assert harmful == {getattr(pynvml, prefix + name) for name in names}
