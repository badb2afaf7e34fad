"""Hardware monitoring: samples of GPUs and hosts, alerts, and the bottleneck of a run.

`sampling` runs on each worker and sends samples as events. `HardwareMonitor`, in the driver, samples its node, receives
the others' samples, reports alerts, and writes both to the run's folder. Nothing here can fail a run.
"""

from pharmclf.monitoring.alerts import HardwareAlert
from pharmclf.monitoring.bottleneck import RunContext
from pharmclf.monitoring.events import HardwareAlertsChanged, LoopSampled, NodeSampled
from pharmclf.monitoring.gpu import DriverNvml, Nvml, NvmlUnavailableError, read_gpus
from pharmclf.monitoring.monitor import HardwareMonitor
from pharmclf.monitoring.sample_log import read_alerts, read_samples
from pharmclf.monitoring.sampler import sampling
from pharmclf.monitoring.samples import GpuReading, NodeSample

__all__ = [
    "DriverNvml", "GpuReading", "HardwareAlert", "HardwareAlertsChanged", "HardwareMonitor", "LoopSampled",
    "NodeSample", "NodeSampled", "Nvml", "NvmlUnavailableError", "RunContext", "read_alerts", "read_gpus",
    "read_samples", "sampling",
]  # fmt: skip
