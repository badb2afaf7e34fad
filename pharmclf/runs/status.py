"""Where a run stands, made of its events; pure but for the clock."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast

from pharmclf.config import RunConfig
from pharmclf.core.errors import first_line
from pharmclf.core.events import (
    CheckpointSaved,
    EpochEnd,
    Event,
    FeatureCacheReady,
    FinalEvaluationStarted,
    Note,
    RunEnd,
    StepEnd,
    Waiting,
    WorkerFailure,
    WorkersStarted,
)
from pharmclf.monitoring.events import HardwareAlertsChanged
from pharmclf.schema_version import SCHEMA_VERSION
from pharmclf.training.phases import build_phases

STATUS_FILE = "status.json"
TEST_PHASE = "test"
"""Stands for the phase when the trained model is tested."""
RunState = Literal["starting", "waiting for nodes", "running", "interrupted", "failed", "complete"]
STATES: tuple[RunState, ...] = ("starting", "waiting for nodes", "running", "interrupted", "failed", "complete")
ACTIVE_STATES = STATES[:3]
"""States of a run that a driver is busy with."""
_FAILURES = 5  # of which the reasons are kept
MAX_REASON = 300
"""Characters of a reason or a message in a status."""


def utc_timestamp(seconds: float | None = None) -> str:
    """A moment, in seconds since 1970, or now, as ISO 8601 in UTC."""
    return datetime.fromtimestamp(time.time() if seconds is None else seconds, UTC).isoformat(timespec="seconds")


@dataclass(kw_only=True)
class Status:
    """The content of status.json."""

    schema_version: int = SCHEMA_VERSION
    name: str
    state: RunState = "starting"
    reason: str = ""
    """Why it has failed, or what it waits for, in one line."""
    says: str = ""
    """The last line of its console that was neither a step nor an epoch."""
    phase: str = ""
    """phase1, phase2, or test; "" before the first step."""
    epoch: int = 0
    """Of the phase, counted from 1."""
    epochs: int = 0
    """That the phase may take; early stopping may end it before."""
    step: int = 0
    """Training steps of the epoch that have been started."""
    steps: int = 0
    progress: float = 0.0
    """Share of all epochs that the run may take, 0..1."""
    eta_s: float | None = None
    """Seconds to the end of the run, counted from `updated_at`, if no phase stops early; what starting a phase and the
    test takes is not in it. None: unknown."""
    eta_whole: bool = False
    """Whether all that is left has been measured. If not, phases that have not begun count as if they were as fast as
    this one, and the test not at all where nothing tells how fast it is."""
    images_per_second: float | None = None
    loss: float | None = None
    """Mean training loss of the epoch so far."""
    accuracy: float | None = None
    """Training accuracy of the epoch so far."""
    val_accuracy: float | None = None
    """Validation accuracy of the last whole epoch."""
    best_val_accuracy: float | None = None
    """Best validation accuracy that this driver has seen."""
    checkpoint: str = ""
    """Name of the last one."""
    checkpoint_at: str = ""
    workers: int | None = None
    """0: in the driver's process; None: not started yet."""
    nodes: list[str] = field(default_factory=list)
    """Addresses of the nodes that they run on."""
    attempt: int = 1
    """Of this driver: how often its workers have been started."""
    failures: int = 0
    """Crashes, lost nodes, hung steps and dead drivers since the run began."""
    failures_here: int = 0
    """Of them, those that count against `failures_allowed`: under this driver."""
    failures_allowed: int = 0
    hardware_warnings: list[dict[str, Any]] = field(default_factory=list)
    """What is wrong with the hardware now, alarms first (see `monitoring.alerts.HardwareAlert`)."""
    last_failures: list[dict[str, Any]] = field(default_factory=list)
    """The newest last: at, kind (crash, node, hang, driver), reason, place (phase, epoch, step; or None)."""
    host: str = field(default_factory=socket.gethostname)
    """Of the driver."""
    pid: int = field(default_factory=os.getpid)
    started_at: str = field(default_factory=utc_timestamp)
    """Of this driver."""
    updated_at: str = field(default_factory=utc_timestamp)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no infinity."""
        values = dataclasses.asdict(self)
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }


class StatusBuilder:
    """Makes a run's status of its events."""

    def __init__(self, config: RunConfig, sizes: Mapping[str, int], before: Mapping[str, Any] | None = None) -> None:
        """Begin.

        Args:
            config: the run.
            sizes: images of each split.
            before: the content of the status.json that the driver before this one has left.
        """
        self.status = Status(name=config.run_name, failures_allowed=config.failures)
        self._batch, self._sizes = config.batch_size, sizes
        self._phases = {phase.name: phase for phase in build_phases(config)}
        self._total = sum(phase.settings.epochs for phase in self._phases.values())
        self._cached: Sequence[str] = ()
        self._epochs_done = 0  # of the phase
        self._validation_s: dict[str, float] = {}  # of an epoch, by phase
        if config.worker_range == (0, 0):
            self.status.workers = 0
        with contextlib.suppress(LookupError, TypeError):  # written by another version
            self._restore(before or {})

    def _restore(self, before: Mapping[str, Any]) -> None:
        status, state = self.status, before["state"]
        status.checkpoint, status.checkpoint_at = str(before["checkpoint"]), str(before["checkpoint_at"])
        status.best_val_accuracy = before["best_val_accuracy"]
        status.failures, status.last_failures = int(before["failures"]), list(before["last_failures"])
        if state in ACTIVE_STATES:
            reason = f"process {before['pid']} on {before['host']} ended without a word; last seen {state}"
            place = {name: before[name] for name in ("phase", "epoch", "step")} if before["phase"] else None
            self._add_failure("driver", reason, place, str(before["updated_at"]))

    def handle_event(self, event: Event) -> bool:
        """Update the status -> whether its state or phase has changed; events that it does not show change nothing."""
        earlier = self.status.state, self.status.phase
        status = self.status
        match event:
            case Note():
                status.says = first_line(event.text, MAX_REASON) or status.says
            case FeatureCacheReady():
                self._cached = event.phases
            case Waiting():
                self._mark_idle("waiting for nodes", first_line(event.text, MAX_REASON))
            case WorkersStarted():
                self._mark_idle("starting", "")
                status.workers, status.nodes, status.attempt = event.workers, list(event.nodes), event.attempt
            case WorkerFailure():
                self._on_failure(event)
            case HardwareAlertsChanged():
                status.hardware_warnings = [alert.to_dict() for alert in event.alerts]
            case CheckpointSaved():
                status.checkpoint, status.checkpoint_at = event.name, utc_timestamp()
            case StepEnd():
                self._on_step(event)
            case EpochEnd():
                self._on_epoch(event)
            case FinalEvaluationStarted():
                self._mark_idle("running", "")
                status.phase, status.progress = TEST_PHASE, 1.0
                status.epoch = status.epochs = status.step = status.steps = 0
            case RunEnd():
                self._mark_idle(event.state, first_line(event.reason, MAX_REASON))
            case _:
                return False
        status.updated_at = utc_timestamp()
        return (status.state, status.phase) != earlier

    def _on_failure(self, event: WorkerFailure) -> None:
        self._mark_idle("starting", "")
        place = None
        if event.position:
            phase, epoch, step = event.position
            place = {"phase": phase, "epoch": epoch + 1, "step": step + 1}
        self._add_failure(event.kind, event.reason, place, utc_timestamp())
        self.status.failures_here, self.status.failures_allowed = event.num_failures, event.max_failures

    def _on_step(self, event: StepEnd) -> None:
        self._set_running(event.phase, event.epoch, event.epochs)
        self._epochs_done = event.epoch
        status = self.status
        status.step, status.steps, status.loss, status.accuracy = event.step, event.steps, event.loss, event.accuracy
        self._estimate(event.images_per_second, event.step)

    def _on_epoch(self, event: EpochEnd) -> None:
        record, status = event.record, self.status
        self._set_running(record.phase, record.epoch, event.epochs)
        self._epochs_done = record.epoch + 1
        status.step = status.steps = math.ceil(self._sizes["train"] / self._batch)
        status.loss, status.accuracy = record.train_loss, record.train_accuracy
        status.val_accuracy = record.val_accuracy
        status.best_val_accuracy = max(record.val_accuracy, status.best_val_accuracy or 0.0)
        train_s = self._sizes["train"] / record.images_per_second
        self._validation_s[status.phase] = max(0.0, record.seconds - train_s)
        self._estimate(record.images_per_second, 0)

    def _set_running(self, phase: str, epoch: int, epochs: int) -> None:
        status = self.status
        status.state, status.reason = "running", ""
        status.phase, status.epoch, status.epochs = phase, epoch + 1, epochs

    def _mark_idle(self, state: str, reason: str) -> None:
        """No steps are taken now."""
        self.status.state, self.status.reason = cast(RunState, state), reason
        self.status.eta_s, self.status.eta_whole, self.status.images_per_second = None, False, None

    def _add_failure(self, kind: str, reason: str, place: Mapping[str, Any] | None, at: str) -> None:
        told = {
            "at": at,
            "kind": kind,
            "reason": first_line(reason, MAX_REASON),
            "place": dict(place) if place else None,
        }
        self.status.failures += 1
        self.status.last_failures = [*self.status.last_failures, told][-_FAILURES:]

    def _estimate(self, rate: float, step: int) -> None:
        """How much is left after `step` training steps of the epoch, at `rate` images per second."""
        status, here = self.status, self._phases[self.status.phase]
        train, validation, test = (self._sizes[split] for split in ("train", "validation", "test"))
        before = sum(phase.settings.epochs for phase in self._phases.values() if phase.number < here.number)
        status.progress = (before + self._epochs_done + step / max(1, status.steps)) / self._total
        status.images_per_second = rate
        later = sum(phase.settings.epochs for phase in self._phases.values() if phase.number > here.number)
        epochs = here.settings.epochs - self._epochs_done + later
        images = max(0, epochs * train - min(step * self._batch, train))
        measured = self._validation_s.get(here.name)
        if rate <= 0 or not math.isfinite((images + epochs * validation) / rate):
            status.eta_s, status.eta_whole = None, False
            return
        status.eta_s = images / rate + epochs * (validation / rate if measured is None else measured)
        # the test goes from the images, as the validation does where nothing is kept
        told = measured is not None and here.name not in self._cached
        if told and measured:
            status.eta_s += measured / max(1, validation) * (validation + test) * len(self._phases)
        status.eta_whole = told and not later
