"""Events of the hardware of a run."""

from __future__ import annotations

from dataclasses import dataclass

from pharmclf.core.events import Event
from pharmclf.monitoring.alerts import HardwareAlert
from pharmclf.monitoring.samples import LoopReading, NodeSample


@dataclass(frozen=True, kw_only=True)
class NodeSampled(Event):
    """A node has been sampled. (one process per node)"""

    sample: NodeSample


@dataclass(frozen=True, kw_only=True)
class LoopSampled(Event):
    """The training loop of a worker has been sampled. (all ranks)"""

    node: str
    reading: LoopReading


@dataclass(frozen=True, kw_only=True)
class HardwareAlertsChanged(Event):
    """The set of active hardware alerts has changed. (driver)"""

    alerts: tuple[HardwareAlert, ...]
    """Those that are active, alarms first."""
