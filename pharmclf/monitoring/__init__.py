"""What the machines of a run do meanwhile: read on every node, judged and kept by the driver.

`sampling` reads in a thread of each worker and tells of it with the worker's other events. `HardwareMonitor`, in the
driver, reads its own node, takes what the others tell, says what is wrong (`alert_rules`, `alerts`), and keeps the
rows in the run's folder (`sample_log`). Neither TensorFlow nor Ray is imported, and nothing here can fail a run.
"""

from pharmclf.monitoring.alerts import HardwareAlert
from pharmclf.monitoring.bottleneck import RunContext
from pharmclf.monitoring.events import HardwareAlertsChanged, LoopSampled, NodeSampled
from pharmclf.monitoring.gpu import DriverNvml, Nvml, NvmlUnavailableError
from pharmclf.monitoring.monitor import HardwareMonitor
from pharmclf.monitoring.sample_log import read_alerts, read_samples
from pharmclf.monitoring.sampler import sampling
from pharmclf.monitoring.samples import GpuProcess, GpuReading, HostReading, LoopReading, NodeSample
from pharmclf.monitoring.summary import GpuSummary, NodeSummary, summarise

__all__ = [
    "DriverNvml",
    "GpuProcess",
    "GpuReading",
    "GpuSummary",
    "HardwareAlert",
    "HardwareAlertsChanged",
    "HardwareMonitor",
    "HostReading",
    "LoopReading",
    "LoopSampled",
    "NodeSample",
    "NodeSampled",
    "NodeSummary",
    "Nvml",
    "NvmlUnavailableError",
    "RunContext",
    "read_alerts",
    "read_samples",
    "sampling",
    "summarise",
]  # fmt: skip
