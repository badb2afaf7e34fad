"""Exports the status of a run as Prometheus metrics, through the exporter of every node of a Ray cluster.

Ray adds the prefix `ray_` to each name. A series ends about twenty seconds after the driver; status.json has the last
values.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from datetime import datetime

from ray.util.metrics import Gauge

from pharmclf.core.background import BackgroundTask
from pharmclf.runs.status import TEST_PHASE, RunState, Status

GAUGES = {
    "pharmclf_state": "1 for the current state of the run, 0 for the others",
    "pharmclf_phase": "Phase of the training, 0 before the first step, 3 while the model is tested",
    "pharmclf_epoch": "Epoch of the phase, from 1",
    "pharmclf_step": "Training steps started in the epoch",
    "pharmclf_progress": "Share of the maximum number of epochs, 0..1",
    "pharmclf_eta_seconds": "Seconds to the end of the run if no phase stops early; absent while unknown",
    "pharmclf_images_per_second": "Training images per second of all workers; 0 while none trains",
    "pharmclf_loss": "Mean training loss of the epoch so far",
    "pharmclf_accuracy": "Training accuracy of the epoch so far, 0..1",
    "pharmclf_validation_accuracy": "Validation accuracy of the last complete epoch, 0..1",
    "pharmclf_workers": "Workers; 0 where the driver trains",
    "pharmclf_failures": "Crashes, lost nodes, hung steps and dead drivers since the run began",
    "pharmclf_seconds_since_checkpoint": "Seconds since the last checkpoint; absent before the first",
}
_STATE = "pharmclf_state"
_EXPORT_INTERVAL_S = 5.0
_UNKNOWN = math.nan  # is not exported, and ends the series


def status_samples(status: Status, now_s: float) -> Iterator[tuple[str, dict[str, str], float]]:
    """The metrics of a status at a time, seconds since 1970: name, tags other than the run's, value."""
    for state in RunState:
        yield _STATE, {"state": state}, float(status.state == state)
    number = status.phase.removeprefix("phase")
    values = {
        "phase": 3.0 if number == TEST_PHASE else float(number or 0),
        "epoch": status.epoch,
        "step": status.step,
        "progress": status.progress,
        "eta_seconds": status.eta_s,
        "images_per_second": status.images_per_second or 0.0,
        "loss": status.loss,
        "accuracy": status.accuracy,
        "validation_accuracy": status.val_accuracy,
        "workers": status.workers or 0,
        "failures": status.failures,
        "seconds_since_checkpoint": _seconds_since(status.checkpoint_at, now_s),
    }
    for name, value in values.items():
        yield f"pharmclf_{name}", {}, _UNKNOWN if value is None else float(value)


def _seconds_since(at: str, now_s: float) -> float | None:
    return max(0.0, now_s - datetime.fromisoformat(at).timestamp()) if at else None


class PrometheusExporter:
    """Exports a run's status every few seconds. This process must be connected to a Ray cluster."""

    def __init__(self, run: str, read: Callable[[], Status]) -> None:
        """Start the thread; the name of the run is a tag of every metric."""
        self._run, self._read = run, read
        self._gauges = {
            name: Gauge(name, description=text, tag_keys=("run", "state") if name == _STATE else ("run",))
            for name, text in GAUGES.items()
        }
        self._task = BackgroundTask(
            "telemetry", self._export, every_s=_EXPORT_INTERVAL_S, at_start=True, attempts_at_close=1
        )

    def close(self) -> None:
        """Export the last values, and stop."""
        self._task.close()

    def _export(self) -> None:
        for name, tags, value in status_samples(self._read(), time.time()):
            self._gauges[name].set(value, tags={"run": self._run, **tags})
