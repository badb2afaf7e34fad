"""What the machines of a run do meanwhile: read on every node, judged and kept by the driver.

`sampled` reads in a thread of each worker and tells of it with the worker's other events. `HardwareMonitor`, in the
driver, reads its own node, takes what the others tell, says what is wrong (`rules`, `watch`), and keeps the rows in the
run's folder (`log`). Neither TensorFlow nor Ray is imported, and nothing here can fail a run.
"""

from pharmclf.hardware.log import read_rows, read_warnings
from pharmclf.hardware.monitor import WARNINGS, HardwareMonitor
from pharmclf.hardware.nvml import DriverNvml, Nvml, NvmlMissing
from pharmclf.hardware.readings import GpuReading, Holder, HostReading, LoopReading, Row
from pharmclf.hardware.sampler import HARDWARE, LOOP, sampled
from pharmclf.hardware.stages import Setting
from pharmclf.hardware.summary import GpuSummary, NodeSummary, summarise
from pharmclf.hardware.watch import Finding

__all__ = [
    "HARDWARE", "LOOP", "WARNINGS", "DriverNvml", "Finding", "GpuReading", "GpuSummary", "HardwareMonitor", "Holder",
    "HostReading", "LoopReading", "NodeSummary", "Nvml", "NvmlMissing", "Row", "Setting", "read_rows", "read_warnings",
    "sampled", "summarise",
]  # fmt: skip
